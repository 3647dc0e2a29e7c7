"""Ways out of a box, end to end: each is shown to work for root outside, and to fail for root in a box."""
