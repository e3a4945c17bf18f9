"""What only other processes can show: kills, several at once, a fresh interpreter, another backend. Seconds each, so
apart from tests/tasks/, whose tests run in one process.
"""
