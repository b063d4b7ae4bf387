# SPDX-License-Identifier: Apache-2.0
"""A run goes to the Hub in one commit: model, tokenizer, card, code, eval results, and nothing else."""

from __future__ import annotations

import glob
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..common.errors import UserError
from ..common.listing import CHECKSUMS, list_files, read_listing, write_listing
from ..common.online import hub_answers
from ..common.run import CARD, is_run, model_folder
from .card import write_card
from .export import export, made_with
from .licence import terms_of
from .scrub import require_publishable


@dataclass(frozen=True)
class Pushed:
    """What an upload did. ``commit`` is None where the Hub held these very files already, or for a dry run."""

    repo_id: str
    files: tuple[str, ...]
    commit: str | None
    url: str


def require_access(repo_id: str, *, online: bool = True, endpoint: str | None = None) -> None:
    """Refuse, before a run begins, what would stop its upload at the end: no token, one the Hub refuses, a wrong name.

    Args:
        repo_id: where the run will go.
        online: ask the Hub whether it knows the token.
        endpoint: another Hub.

    Raises:
        UserError: there is no access token, the Hub does not accept it or cannot be reached, or the name is not valid.
    """
    _check_repo_id(repo_id)
    token = _require_token(get_token())
    if online:
        if endpoint is None and not hub_answers():
            raise UserError(
                f"the Hub ({constants.ENDPOINT}) does not answer, so {repo_id} cannot be published when the run is "
                "done; leave push_to_hub out, and publish the run later by `ibnorm-hf push`"
            )
        _asking(HfApi(endpoint=endpoint, token=token, library_name="ibnorm_hf").whoami, repo_id)


def _require_token(token: str | None) -> str:
    if token is None:
        raise UserError("there is no access token; run `hf auth login`, or set HF_TOKEN to a token with write access")
    return token


def push(
    source: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    dry_run: bool = False,
    token: str | None = None,
    endpoint: str | None = None,
    max_shard_size: str | int = "5GB",
    license: str | None = None,
    say: Callable[[str], Any] = print,
) -> Pushed:
    """Export a run with its card into a temporary folder and commit that to a model repository.

    Args:
        source: a run folder; a model folder goes too, with a card that has little to say.
        repo_id: ``name`` or ``owner/name``; created if absent.
        private: visibility of a new repository, private if None. One that exists must be what is asked for.
        dry_run: say what would be uploaded; needs no token and no network.
        token: access token; None takes the one of ``hf auth login`` or ``HF_TOKEN``.
        endpoint: another Hub.
        license: identifier of the licence that its owner gives it; what was made from others' weights keeps theirs.
        say: receives lines of progress.

    Raises:
        UserError: a mistake (exit code 2), or an upload that broke off (1), after which the same call goes on:
            what reached the Hub is not sent again, and nothing is visible before the commit.
    """
    token = token or get_token()
    _check_repo_id(repo_id)
    model_folder(source)
    if not dry_run:
        _require_token(token)
    api = HfApi(endpoint=endpoint, token=token, library_name="ibnorm_hf")
    if not dry_run and "/" not in repo_id:
        repo_id = f"{_asking(api.whoami, repo_id)['name']}/{repo_id}"
    say(terms_of(source, license).line())
    with tempfile.TemporaryDirectory(prefix="ibnorm_hf_push_") as aside:
        folder = export(source, Path(aside) / "export", max_shard_size=max_shard_size)
        if is_run(Path(source)) or not (folder / CARD).is_file():
            write_card(source, target=folder, model_id=repo_id, license=license)
            write_listing(folder, CHECKSUMS, {"made_with": made_with(folder)})
        places = (Path.home(), Path(source).resolve(), Path.cwd(), Path(aside))
        require_publishable(folder, secrets=(token or "",), places=places)
        names = list_files(folder)
        size = sum((folder / name).stat().st_size for name in names)
        for name in names:
            say(f"{(folder / name).stat().st_size:>13,}  {name}")
        say(f"{len(names)} files, {size:,} bytes, to {api.endpoint}/{repo_id}")
        if dry_run:
            return Pushed(repo_id, tuple(names), None, f"{api.endpoint}/{repo_id}")
        return _upload(api, repo_id, private, folder, names, say)


def _check_repo_id(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"repo_id '{repo_id}' is not valid: {' '.join(str(error).split())}") from None


def _upload(
    api: HfApi, repo_id: str, private: bool | None, folder: Path, names: list[str], say: Callable[[str], Any]
) -> Pushed:
    _asking(api.create_repo, repo_id, private=private is not False, exist_ok=True)
    info = _asking(api.model_info, repo_id)
    if private is not None and info.private != private:
        now, asked = ("private", "public") if info.private else ("public", "private")
        raise UserError(f"{repo_id} is {now}, not {asked}: change it in its settings, or choose another repo_id")
    commit = _asking(
        api.upload_folder,
        repo_id,
        folder_path=str(folder),
        delete_patterns=[glob.escape(name) for name in _stale(api, repo_id, info, names)] or None,
        commit_message="Upload by ibnorm_hf",
        parent_commit=info.sha,
    )
    url = f"{api.endpoint}/{repo_id}"
    if commit.oid == info.sha:
        say(f"nothing changed: {url} holds these files already")
        return Pushed(repo_id, tuple(names), None, url)
    say(f"published {url} at {commit.oid}")
    return Pushed(repo_id, tuple(names), commit.oid, url)


def _stale(api: HfApi, repo_id: str, info: Any, names: list[str]) -> list[str]:
    """Files that an earlier push brought and this one does not: an old weight file would be loaded for a new one."""
    there = {item.rfilename for item in info.siblings or []}
    if CHECKSUMS not in there:
        return []
    with tempfile.TemporaryDirectory(prefix="ibnorm_hf_push_") as aside:
        path = _asking(api.hf_hub_download, repo_id, filename=CHECKSUMS, revision=info.sha, local_dir=aside)
        try:
            listed = read_listing(Path(path))[1]
        except UserError:
            return []  # not ours: nothing of it is known to be superseded
    return sorted(there.intersection(listed) - set(names))


def _asking(call: Callable[..., Any], repo_id: str, **arguments: Any) -> Any:
    """Call the Hub; what goes wrong becomes one sentence without the token."""
    if call.__name__ != "whoami":
        arguments["repo_id"] = repo_id
    try:
        return call(**arguments)
    except HfHubHTTPError as error:
        raise _refused(error, repo_id) from None
    except (OSError, RuntimeError, ValueError) as error:
        cause = error.__cause__
        if isinstance(cause, HfHubHTTPError):
            raise _refused(cause, repo_id) from None
        raise _broken(repo_id, _reason(cause or error, call)) from None
    except Exception as error:
        # The client lets its HTTP library's errors through, whichever library that is.
        raise _broken(repo_id, _reason(error, call)) from None


def _reason(error: BaseException, call: Any) -> str:
    return (str(error) or type(error).__name__).replace(call.__self__.token, "<hidden>")


def _refused(error: HfHubHTTPError, repo_id: str) -> UserError:
    status = error.response.status_code if error.response is not None else 0
    if status == 401:
        return UserError("the Hub does not accept the access token; run `hf auth login` with one that has write access")
    if status == 403:
        return UserError(f"the access token may not write to {repo_id}; use one with write access to that owner")
    if status in (409, 412):
        return UserError(f"{repo_id} was changed by somebody else meanwhile; look at it, then push again", exit_code=1)
    return _broken(repo_id, f"HTTP status {status}")


def _broken(repo_id: str, reason: str) -> UserError:
    reason = " ".join(reason.split())[:200]
    return UserError(
        f"the upload to {repo_id} broke off ({reason}); no half of it is visible: run the same command again, files "
        "that arrived are not sent twice",
        exit_code=1,
    )
