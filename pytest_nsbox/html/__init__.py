"""The page of ``--sandbox-html``."""
