"""Files on disk: writes that are whole or absent, and text files in any Unicode encoding."""
