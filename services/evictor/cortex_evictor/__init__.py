"""The evictor: proposes who leaves a node when room is needed."""
