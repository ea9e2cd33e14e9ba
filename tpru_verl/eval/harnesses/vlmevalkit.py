r"""VLMEvalKit's own run.py with our data sets beside its own: `--data TPRU_Test`, judged by our grader.

    tpru eval export vlmevalkit ~/LMUData --bench tpru-test,lego-puzzles
    python -m tpru_verl.eval.harnesses.vlmevalkit CHECKOUT --data TPRU_Test --model NAME \
        --base-url http://localhost:8000/v1 --local-media

VLMEvalKit finds data sets in lists written into its code, so the class is put into them before run.py starts.
Without `--local-media` its client sends pictures as JPEG, and other pixels than training had. Written for
its commit e8e78f05 of August 2026.
"""

from __future__ import annotations

import base64
import json
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tpru_verl.eval.benchmarks.base import FOLDER
from tpru_verl.eval.engines.base import parts_of
from tpru_verl.eval.harnesses.rows import by_vlmevalkit_name, verdict_of
from tpru_verl.sample import IMAGE_TAG

CLASS = "TPRUDatasets"


def main(arguments: Sequence[str]) -> None:
    """Register, then run CHECKOUT/run.py with what follows. Raises FileNotFoundError for another folder."""
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.exit(__doc__)
    checkout = Path(arguments[0]).expanduser().resolve()
    if not (checkout / "run.py").is_file() or not (checkout / "vlmeval").is_dir():
        raise FileNotFoundError(
            f"{checkout}: found no run.py and vlmeval in it, expected VLMEvalKit's checkout"
        )
    sys.path.insert(0, str(checkout))
    sys.argv = [str(checkout / "run.py"), *arguments[1:]]
    register()
    runpy.run_path(str(checkout / "run.py"), run_name="__main__")


def register() -> type:
    """Put the data set class where VLMEvalKit looks for it, and return it."""
    import vlmeval.dataset as kit  # type: ignore[import-not-found]

    made = dataset_class(kit.ImageBaseDataset)
    kit.DATASET_CLASSES.append(made)
    kit.SUPPORTED_DATASETS.extend(made.supported_datasets())
    setattr(kit, CLASS, made)
    return made


def dataset_class(base: Any) -> type:
    """A subclass of VLMEvalKit's `ImageBaseDataset` for the tables that `export` writes."""

    class TPRUDatasets(base):
        TYPE = "MCQ"
        DEFAULT_JUDGE = "exact_matching"

        @classmethod
        def supported_datasets(cls) -> list[str]:
            return [*by_vlmevalkit_name()]

        def load_data(self, dataset: str) -> Any:
            import pandas as pd

            root = Path(os.environ.get(FOLDER, "~/LMUData")).expanduser()
            table = root / f"{dataset}.tsv"
            if not table.is_file():
                name = by_vlmevalkit_name()[dataset].name
                raise FileNotFoundError(
                    f"{table}: no such file; `tpru eval export vlmevalkit {root} --bench {name}` writes it"
                )
            data = pd.read_csv(table, sep="\t", dtype=str, keep_default_na=False)
            if missing := {"index", "question", "image", "failed"} - set(data):
                raise ValueError(
                    f"{table}: found no {', '.join(sorted(missing))}, expected an exported table"
                )
            return data

        def build_prompt(self, line: Any) -> list[dict[str, str]]:
            """Text and pictures in their order."""
            if isinstance(line, int):
                line = self.data.iloc[line]
            pictures = iter(self.dump_image(line))
            return [
                {"type": "image", "value": next(pictures)}
                if part == IMAGE_TAG
                else {"type": "text", "value": part}
                for part in parts_of(str(line["question"]))
            ]

        def dump_image(self, line: Any) -> list[str]:
            """The table's own files: VLMEvalKit would decode and write them anew."""
            cells = line["image"]
            paths = []
            for i, cell in enumerate([cells] if isinstance(cells, str) and cells else cells or []):
                path = Path(self.img_root) / f"{_file_name(str(line['index']))}_{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(base64.b64decode(cell))
                paths.append(str(path))
            return paths

        def evaluate(self, eval_file: str, **judge_kwargs: object) -> Any:
            """Accuracy over all rows and by task, and what could not be read; verdicts in a file."""
            import pandas as pd
            from vlmeval.smp import dump, load  # type: ignore[import-not-found]

            said = {str(row["index"]): str(row["prediction"]) for _, row in load(eval_file).iterrows()}
            rows = [dict(row) for _, row in self.data.iterrows()]
            judged = [(row, verdict_of(row, said.get(str(row["index"]), ""))) for row in rows]
            stem = Path(eval_file).with_suffix("")
            verdicts = [
                {"id": row["id"], "parsed": found.parsed, "correct": found.correct} for row, found in judged
            ]
            Path(f"{stem}_verdicts.json").write_text(json.dumps(verdicts, indent=1))
            groups: dict[str, list[tuple[bool, bool]]] = {"Overall": []}
            for row, found in judged:
                for name in ("Overall", row["task"]):
                    groups.setdefault(name, []).append((found.correct, found.parsed is None))
            columns = {name: _shares(group) for name, group in groups.items() if name}
            table = pd.DataFrame({"split": ["accuracy", "unparsed"], **columns})
            dump(table, f"{stem}_acc.csv")
            return table

    TPRUDatasets.__name__ = TPRUDatasets.__qualname__ = CLASS
    return TPRUDatasets


def _shares(group: Sequence[tuple[bool, bool]]) -> list[float]:
    return [sum(column) / len(group) for column in zip(*group, strict=True)]


def _file_name(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in text)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"tpru: {error}")
