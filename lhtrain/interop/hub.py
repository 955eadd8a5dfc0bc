"""Downloads a model from the Hugging Face hub, or finds it in the hub's cache on this machine."""

from pathlib import Path

from lhtrain.errors import RunError

HUB = "hub:"
# Weights as safetensors, and small files. Nothing that can run code: no *.py, no pickles.
WANTED = [
    "*.safetensors",
    "*.json",
    "*.jinja",
    "*.txt",
    "*.model",
    "README.md",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
]
UNWANTED = ["consolidated*", "original/*", "onnx/*", "runs/*"]


def snapshot(name: str, revision: str | None = None) -> tuple[Path, str]:
    """Return the folder of a repository's files, and its commit.

    Without network access, or with HF_HUB_OFFLINE=1, the files are taken from the cache (HF_HOME).

    name: such as HuggingFaceTB/SmolLM2-135M. revision: branch, tag or commit; None: the main branch.

    Raises RunError: a package or the repository is missing, access is not granted, or the network fails.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            HFValidationError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError as error:
        raise RunError(
            f"{HUB}{name}: needs the package huggingface-hub; pip install 'lhtrain[hf]'"
        ) from error
    try:
        path = snapshot_download(name, revision=revision, allow_patterns=WANTED, ignore_patterns=UNWANTED)
    except HFValidationError as error:
        raise RunError(f"{HUB}{name}: must be the name of a repository, such as OWNER/MODEL") from error
    except GatedRepoError as error:
        rule = "you must accept its license on huggingface.co and log in with `hf auth login`"
        raise RunError(f"{HUB}{name}: {rule}") from error
    except RevisionNotFoundError as error:
        raise RunError(f"revision={revision}: {name} has no such branch, tag or commit") from error
    except RepositoryNotFoundError as error:
        rule = "there is no such repository; if it is private, log in with `hf auth login`"
        raise RunError(f"{HUB}{name}: {rule}") from error
    except LocalEntryNotFoundError as error:
        rule = "it is not in the cache on this machine, and the hub cannot be reached"
        remedy = "download it where there is a network, and import the folder"
        raise RunError(f"{HUB}{name}: {rule}; {remedy}") from error
    except OSError as error:  # also the errors of requests and httpx
        raise RunError(f"{HUB}{name}: could not be downloaded ({_first_line(error)})") from error
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("httpx", "httpcore", "requests", "huggingface_hub"):
            raise
        raise RunError(f"{HUB}{name}: could not be downloaded ({_first_line(error)})") from error
    return Path(path), Path(path).name


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
