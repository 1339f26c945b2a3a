"""The Hugging Face Hub: heads and networks by ``hf-hub:user/name``, and uploads."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from densescore.errors import DensescoreError, reason_of

PREFIX = "hf-hub:"

HEAD = "head.safetensors"
"""File of a head in its repository; a repository without one holds a network of timm."""


def fetch_head(name: str) -> Path | None:
    """The head's file of ``hf-hub:user/name`` or ``hf-hub:user/name@revision``, in the hub's cache; None for a network.

    An unchanged file is not downloaded again. DensescoreError if there is no such repository, or no connection.
    """
    import huggingface_hub as hub
    from huggingface_hub import errors

    repo, _, revision = name.removeprefix(PREFIX).partition("@")
    try:
        return Path(hub.hf_hub_download(repo, HEAD, revision=revision or None))
    except errors.LocalEntryNotFoundError as error:  # also an `EntryNotFoundError`, but of the cache
        raise DensescoreError(f"{name}: is not in the cache, and the hub cannot be reached") from error
    except errors.EntryNotFoundError:
        return None
    except Exception as error:  # the hub and the connection raise many kinds
        raise DensescoreError(f"{name}: cannot be loaded from the hub: {reason_of(error)}") from error


def upload(repo: str, save_head: Callable[[Path], None], card: str, *, private: bool = False) -> str:
    """Upload a head and its model card to ``user/name``, made if needed; the page's address."""
    import huggingface_hub as hub

    with TemporaryDirectory() as folder:
        save_head(Path(folder) / HEAD)
        Path(folder, "README.md").write_text(card, encoding="utf-8")
        try:
            address = hub.create_repo(repo, private=private, exist_ok=True)
            hub.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload a head of densescore")
        except Exception as error:
            raise DensescoreError(f"{repo}: cannot be uploaded to the hub: {reason_of(error)}") from error
    return str(address)
