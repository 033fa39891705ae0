"""Find and read the catalogue: models.toml, or the demo model if there is none."""

from importlib.resources import files
from pathlib import Path

from cortex_proto.catalogue import Catalogue, CatalogueError, parse
from cortex_proto.errors import BadRequestError

DEFAULT_FILE = "models.toml"


def read_catalogue(models_config: str, config_dir: Path) -> tuple[Catalogue, str]:
    """Read the catalogue; return it and where it came from.

    It is `models_config`, relative to `config_dir`; if that is empty, models.toml in `config_dir` or in
    the working directory; failing that, the demo model.

    Raises:
        CatalogueError: the named file is missing, or what was found cannot be used.
    """
    if models_config:
        return _read(config_dir / models_config)
    for folder in (config_dir, Path.cwd()):
        if (folder / DEFAULT_FILE).is_file():
            return _read(folder / DEFAULT_FILE)
    return parse(files("cortex_scheduler").joinpath("demo.toml").read_text()), "the demo model"


def _read(file: Path) -> tuple[Catalogue, str]:
    try:
        return parse(file.read_text()), str(file)
    except (OSError, UnicodeDecodeError, CatalogueError, BadRequestError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CatalogueError(f"{file}: {reason}") from error
