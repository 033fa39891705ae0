"""What two cortex processes must agree on: ids, subjects, messages, catalogue, errors. All of it pure."""
