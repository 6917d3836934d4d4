"""The bundled tables; reading and checking users' own data."""
