"""The image: its Dockerfile is read, built over a stand-in for its base, and run as its user; `make test-image`."""
