"""The published matrix: features of pytest and other plugins, each with and without boxes, compared.

``python -m tests.matrix`` runs every row and writes docs/reference/matrix.md; ``tox -e matrix`` brings the plugins.
"""
