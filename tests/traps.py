"""A working directory whose files leave a mark if a command imports, runs or obeys them."""

from pathlib import Path

# Modules that the command, Prefect's server and the training process import, and those that Python imports by itself.
_MODULES = (
    *("numpy", "tensorflow", "keras", "jax", "h5py", "pyarrow", "pandas", "great_expectations", "prefect", "uvicorn"),
    *("pydantic", "httpx", "psutil", "rich", "yaml", "sqlalchemy", "jinja2", "fastapi", "asyncpg", "cloudpickle"),
    *("queue", "logging", "json", "tempfile", "multiprocessing", "xml", "statistics", "secrets", "random"),
    *("sitecustomize", "usercustomize", "cli", "flows", "schemas", "tasks"),
)
# Nothing listens on the discard port.
_DEAD_API = "http://127.0.0.1:9/api"


def set_traps(folder: Path) -> Path:
    """Write the files into ``folder``, and return the folder of the marks: its entries name what was imported or read.

    Prefect's settings name a logging configuration that runs code, and an API that does not answer.
    """
    marks = folder.with_name(f"{folder.name} marks")
    marks.mkdir()
    for name in _MODULES:
        (folder / f"{name}.py").write_text(f"open({str(marks / name)!r}, 'w').close()\nraise ImportError('a trap')\n")
    logging = folder / "logging.yml"
    logging.write_text(f"version: 1\nhandlers:\n  trap:\n    '()': os.mkdir\n    path: {str(marks / 'logging')!r}\n")
    (folder / "prefect.toml").write_text(f'[api]\nurl = "{_DEAD_API}"\n[logging]\nconfig_path = "{logging}"\n')
    (folder / ".env").write_text(f"PREFECT_API_URL={_DEAD_API}\nPREFECT_LOGGING_SETTINGS_PATH={logging}\n")
    (folder / "pyproject.toml").write_text(f'[tool.prefect.api]\nurl = "{_DEAD_API}"\n')
    (folder / "prefect.yaml").write_text("deployments: [{name: a trap}]\n")
    return marks
