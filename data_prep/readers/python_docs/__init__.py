"""Reader of the API documentation of installed Python packages."""
