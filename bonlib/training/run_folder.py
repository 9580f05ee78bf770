"""The folder of a training run: what it is, its checkpoints, and in the end its policy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bonlib.draws.segments import replace_file
from bonlib.models.loaded import LoadedModel, without_bars
from bonlib.models.peft_folders import save_peft_folder

Progress = dict[str, Any]  # where a run is, as JSON can hold it


class RunFolder:
    """Files of one run; only the main process writes, and nothing half-written is ever taken for whole.

    Args:
        path: made when the first file is written.
        accelerator: of the run.
    """

    def __init__(self, path: Path, accelerator: Any) -> None:
        self.path, self.accelerator = path, accelerator

    @property
    def finished(self) -> bool:
        """Whether the trained policy is there."""
        return (self.path / "policy").exists()

    @property
    def newest(self) -> Path | None:
        """The last checkpoint."""
        return max((self.path / "checkpoints").glob("step-*"), default=None)

    def claim(self, about: Mapping[str, Any]) -> None:
        """Write down what this run is.

        Raises:
            ValueError: if the folder holds another run.
        """
        text, file = json.dumps(about, indent=1), self.path / "run.json"
        if file.exists() and file.read_text() != text:
            raise ValueError(f"folder {self.path} holds a run with other settings ({file}): take another folder")
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process and not file.exists():
            replace_file(file, text.encode())

    def resume(self) -> Progress:
        """Put the accelerator's objects back to the last checkpoint, if there is one, and return the progress then."""
        newest = self.newest
        if newest is None:
            return {}
        self.accelerator.load_state(str(newest))
        return _read(newest)

    def save(self, step: int, progress: Progress) -> None:
        """Write a checkpoint and delete the one before."""
        older = self.newest
        final = self.path / "checkpoints" / f"step-{step:06d}"
        partial = final.with_name(f"partial-{step:06d}")
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            _write(partial, progress)
            partial.rename(final)
            if older:
                shutil.rmtree(older)
        self.accelerator.wait_for_everyone()

    def finish(self, policy: LoadedModel, progress: Progress) -> None:
        """Write the policy, as `transformers` loads it, and delete the checkpoints."""
        if self.accelerator.is_main_process:
            partial = self.path / "policy.part"
            shutil.rmtree(partial, ignore_errors=True)
            with without_bars():
                if hasattr(policy.model, "peft_config"):
                    save_peft_folder(policy.model, partial, policy.commit)
                else:
                    policy.model.save_pretrained(partial)
            policy.tokenizer.save_pretrained(partial)
            _write(self.path, progress)
            partial.rename(self.path / "policy")
            shutil.rmtree(self.path / "checkpoints", ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def final_progress(self) -> Progress:
        """Return the progress of a finished run."""
        return _read(self.path)


def _read(folder: Path) -> Progress:
    return json.loads((folder / "progress.json").read_text())


def _write(folder: Path, progress: Progress) -> None:
    replace_file(folder / "progress.json", json.dumps(progress).encode())
