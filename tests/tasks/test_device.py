import subprocess
import sys


def test_the_backend_starts_without_a_word_on_the_terminal_and_says_what_it_runs_on() -> None:
    program = "from tasks.device import set_up_backend; print(set_up_backend(0).model_dump_json())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert '"kind":"cpu"' in done.stdout
    assert '"backend":"tensorflow"' in done.stdout


def test_stderr_works_again_after_the_backend_started() -> None:
    program = "import os; from tasks.device import set_up_backend; set_up_backend(0); os.write(2, b'after')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == "after"
