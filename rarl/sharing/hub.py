"""Uploads to a hub by huggingface_hub. Where the hub is, and who one is there, its own variables
say: HF_ENDPOINT and HF_TOKEN."""

from __future__ import annotations

import sys
from pathlib import Path

from rarl.errors import UserError


def require_token() -> str:
    """Returns the token that uploads are made with. Raises UserError where there is none: nothing
    is asked for."""
    from huggingface_hub import get_token

    token = get_token()
    if not token:
        raise UserError(
            "no token for the hub: set HF_TOKEN to one that may write, or call `hf auth login` once"
        )
    return token


def upload(folder: Path, repo: str, private: bool) -> str:
    """Makes the repository, where it is not there, and uploads the folder as one commit. Returns
    its address. Raises UserError."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
    from huggingface_hub.utils import disable_progress_bars

    # Whichever library it asks with: that has changed, and what it raises with it.
    unreachable: type[Exception] = HfHubHTTPError.__mro__[1]
    api = HfApi(token=require_token())
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        address = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload by RARL")
    except OfflineModeIsEnabled:
        raise UserError(
            f"{repo}: HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it for this command"
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        advice = "; is the token one that may write there?" if status in (401, 403) else ""
        said = error.server_message or first_line(error)
        raise UserError(f"{repo}: the hub says {status}: {said}{advice}") from None
    except (HFValidationError, ValueError) as error:
        raise UserError(f"{repo}: {first_line(error)}") from None
    except (unreachable, OSError, RuntimeError) as error:
        raise UserError(
            f"{repo}: the hub at {api.endpoint} cannot be reached ({first_line(error)}); without "
            "network, copy the folder instead"
        ) from None
    return str(address)


def first_line(error: Exception) -> str:
    """Returns the first line of what an error says, or its kind."""
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    return said[0].rstrip(".") if said else type(error).__name__
