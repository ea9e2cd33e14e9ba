"""LeRobot data sets of two episodes, for tests of the builder."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from support.frames import SIZE, encoded, moment, video

EVEN = [i / 25 for i in range(150)]  # six seconds


def info(root: Path, version: str, kind: str, **more: str) -> None:
    camera = {"dtype": kind, "shape": [*SIZE[::-1], 3]}
    content = {"codebase_version": version, "fps": 25, "chunks_size": 1000, **more}
    content["features"] = {"observation.images.top": camera, "action": {"dtype": "float32"}}
    (root / "meta").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(content))


def v2(root: Path) -> Path:
    template = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    info(root, "v2.1", "video", video_path=template, data_path="")
    lines = [{"episode_index": i, "tasks": [f"do {i}"], "length": 75} for i in range(2)]
    (root / "meta/episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder = root / "videos/chunk-000/observation.images.top"
    folder.mkdir(parents=True)
    for i in range(2):
        video(folder / f"episode_{i:06d}.mp4", EVEN[:75], seed=i)
    return root


def v3(root: Path) -> Path:
    """Both episodes in one file: three seconds each."""
    info(
        root,
        "v3.0",
        "video",
        video_path="videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        data_path="data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    )
    key = "videos/observation.images.top"
    columns = {
        "episode_index": [0, 1],
        "tasks": [["do 0"], ["do 1"]],
        f"{key}/chunk_index": [0, 0],
        f"{key}/file_index": [0, 0],
        f"{key}/from_timestamp": [0.0, 3.0],
        f"{key}/to_timestamp": [3.0, 6.0],
        "stats/action/mean": [[0.0], [0.0]],
    }
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    pq.write_table(pa.table(columns), root / "meta/episodes/chunk-000/file-000.parquet")
    folder = root / key / "chunk-000"
    folder.mkdir(parents=True)
    video(folder / "file-000.mp4", EVEN)
    return root


def in_columns(root: Path) -> Path:
    """Version 3 with pictures in parquet."""
    data_path = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    info(root, "v3.0", "image", video_path="", data_path=data_path)
    columns = {"episode_index": [0, 1], "tasks": [["do 0"], ["do 1"]]}
    where = {"data/chunk_index": [0, 0], "data/file_index": [0, 0]}
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    pq.write_table(pa.table({**columns, **where}), root / "meta/episodes/chunk-000/file-000.parquet")
    frames = [(episode, number) for episode in range(2) for number in range(75)]
    table = {
        "episode_index": [episode for episode, _ in frames],
        "frame_index": [number for _, number in frames],
        "timestamp": [number / 25 for _, number in frames],
        "observation.images.top": [
            {"bytes": encoded(moment(e, n / 75), "PNG"), "path": None} for e, n in frames
        ],
    }
    (root / "data/chunk-000").mkdir(parents=True)
    pq.write_table(pa.table(table), root / "data/chunk-000/file-000.parquet")
    return root
