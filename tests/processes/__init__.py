"""What only other Python processes can show: kills, several at once, a fresh interpreter, another backend. Seconds
each, so apart from tests/tasks/.
"""
