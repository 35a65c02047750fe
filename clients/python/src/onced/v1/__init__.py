"""The generated messages and stubs of the API. Written by ./generate."""
