"""The bundled tables, and the reading and checking of a user's own data."""
