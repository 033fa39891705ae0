"""New names: the randomness that cortex_proto, being pure, must not have."""

import secrets

from cortex_proto.ids import InstanceId, RequestId


def new_instance(service: str) -> InstanceId:
    """Name this run of `service`; never given twice, and one token of a subject."""
    return InstanceId(f"{service}-{secrets.token_hex(5)}")


def new_request() -> RequestId:
    """Name a request: 128 random bits in hex."""
    return RequestId(secrets.token_hex(16))
