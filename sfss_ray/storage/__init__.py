"""Files on disk: written whole or not at all, and text read whatever its encoding."""
