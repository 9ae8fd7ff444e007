"""Uploads an exported folder to the Hugging Face hub, or to the server that `HF_ENDPOINT` names."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi

from swiftplug import __version__
from swiftplug.errors import UserError

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_EMPTY = {".gitattributes", "README.md"}


class HubTarget(NamedTuple):
    """Where a model is uploaded.

    Attributes:
        repo_id: `org/name`.
        private: Whether a new repository is private.
    """

    repo_id: str
    private: bool

    def check(self) -> None:
        """Check the name, the token and that nothing would be overwritten, before anything slow.

        Raises:
            UserError: The name is none, there is no valid token, the hub is not reached, or the repository has files.
        """
        if not _REPO.fullmatch(self.repo_id):
            raise UserError(f"--push: found {self.repo_id!r}, expected the name of a repository, such as org/my-model")
        api = HfApi()
        try:
            api.whoami()
            held = {*api.list_repo_files(self.repo_id)} if api.repo_exists(self.repo_id) else set()
        except Exception as error:  # the network and the hub raise anything
            is_refused = isinstance(error, OSError) and not isinstance(error, ConnectionError)
            hint = "log in with `hf auth login`, or set HF_TOKEN" if is_refused else api.endpoint
            raise UserError(f"--push: {_first_line(error)}; {hint}") from error
        if files := sorted(held - _EMPTY):
            raise UserError(
                f"--push: {self.repo_id} exists and holds {files[0]} and other files; name another repository"
            )

    def upload(self, folder: Path) -> str:
        """Make the repository if there is none, and upload a folder in one commit.

        Returns:
            The address of the repository.

        Raises:
            UserError: The hub refused it, or was not reached; the folder stays.
        """
        api = HfApi()
        try:
            place = api.create_repo(self.repo_id, private=self.private, exist_ok=True)
            api.upload_folder(
                repo_id=self.repo_id, folder_path=folder, commit_message=f"Upload with swiftplug {__version__}"
            )
        except Exception as error:  # as above
            again = f"hf upload {self.repo_id} {shlex.quote(str(folder))}"
            raise UserError(
                f"--push: {_first_line(error)}; {folder} is complete, to upload it again: {again}"
            ) from error
        return str(place)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
