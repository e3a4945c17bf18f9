"""Stage tests that need other Python processes: kills, concurrent runs, a fresh interpreter, another backend."""
