"""The warden: the small process that makes boxes and ends them, and the client that talks to it."""
