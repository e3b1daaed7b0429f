"""What a policy names and does not hold: a tokenizer, a vision-language model's configuration, a text encoder. From a folder or from the Hub.

Whoever wrote the name decides what is opened. So only data comes down, links out of the folder are refused, and a part that brings code of its
own (auto_map) is refused before transformers is called: it would stop and ask whether to run it.
"""

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ..atomic import read_json
from ..confine import inside
from ..errors import UserError
from ..hub import told

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

SMALL = ("*.json", "*.txt", "*.model", "*.jinja")
CONFIGS = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
REFUSALS = (ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError)  # transformers', of a config


def beside(folder: Path, name: str) -> Path | None:
    """`name` as a folder inside or beside `folder`, None where there is none. Raises UserError for a path or link that leads elsewhere."""
    name = own_name(name)
    for parent in (Path(folder), Path(folder).absolute().parent):
        path = inside(parent, name, folder)
        if path.is_dir():
            return path
    return None


def own_name(name: str) -> str:
    """Of an absolute path, which is the machine's that wrote it, only the last part counts."""
    return PurePosixPath(name).name if isinstance(name, str) and name.startswith("/") else name


def part(name: str, what: str, where: str | Path, folder: Path | None, patterns: tuple[str, ...] = SMALL) -> Path:
    """The folder of a part, whose files can be read safely: in or beside `folder`, or else from the Hub (HF_HUB_OFFLINE is honoured).

    Without `folder` the user named it, and any folder will do. `what` and `where` are for the message. Raises UserError where it is not to be
    had, has links out of its folder, or brings code of its own.
    """
    found = beside(folder, name) if folder is not None else Path(name) if Path(name).is_dir() else None
    if found is None and name.startswith("/"):
        place = f"put that folder beside the checkpoint, as {own_name(name)}" if folder is not None else "check the path"
        raise UserError(f"{where}: its {what} {name!r:.200} is a folder of the machine that wrote this, which is not opened here; {place}")
    if found is None:
        from huggingface_hub import snapshot_download

        try:
            with told(name):
                found = Path(snapshot_download(name, allow_patterns=list(patterns)))
        except UserError as error:
            place = f"a folder {name} beside the checkpoint would serve too" if folder is not None else "a folder would serve too"
            raise UserError(f"{where}: its {what} {name!r:.200} could not be loaded ({error}); {place}") from error
    for path in found.iterdir():
        inside(found, path.name, found)
    if not (found / CONFIGS[0]).is_file() and what != "tokenizer":
        raise UserError(f"{where}: its {what} {name!r:.200} holds no config.json; name one that does")
    for config in CONFIGS:
        path = found / config
        if path.is_file() and "auto_map" in read_json(path):
            raise UserError(f"{path}: this {what} brings code of its own (auto_map), which is never run; name one that transformers itself knows")
    return found


def tokenizer(folder: Path, what: str = "tokenizer") -> "PreTrainedTokenizerBase":
    """From a folder that `part` has returned, once it is known to make batches."""
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
        found(["open", "open the drawer"], padding=True, truncation=True, max_length=8)
        return found
    except REFUSALS as error:
        raise UserError(f"{folder}: no {what} that transformers can read ({told_by(error)})") from error


def configuration(folder: Path, what: str) -> "PretrainedConfig":
    """config.json of a folder that `part` has returned, as transformers understands it."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except (*REFUSALS, StrictDataclassError) as error:
        raise UserError(f"{folder}: no configuration of a {what} that transformers can read ({told_by(error)})") from error


def told_by(error: Exception) -> str:
    """An error of transformers in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
