"""``python -m torch_helion.weights inspect | verify | convert | manifest``.

What flows in: command line arguments. What flows out: text (or JSON with ``--json``) and an exit
status: 0 all is good, 1 the file is bad, 2 it could not be checked.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from torch_helion.weights import deep
from torch_helion.weights import manifest as manifests
from torch_helion.weights.atomic import replacing
from torch_helion.weights.convert.convert import convert
from torch_helion.weights.errors import WeightsError, quoted
from torch_helion.weights.file import WeightFile
from torch_helion.weights.header import address_alignment, odd_names
from torch_helion.weights.progress import ProgressBar
from torch_helion.weights.source import Source

GOOD, BAD, UNCHECKED = 0, 1, 2
Outcome = tuple[dict[str, Any], list[str]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    args = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], Outcome] = args.command
    try:
        facts, lines = command(args)
        status = GOOD
    except WeightsError as error:
        facts = {"file": error.file, "tensor": error.tensor, "rule": error.rule}
        lines, status = [f"bad: {error}"], BAD
    except OSError as error:
        facts, lines, status = {"error": str(error)}, [f"could not check: {error}"], UNCHECKED
    if args.json:
        print(json.dumps({"status": status, **facts}, indent=1))
    else:
        print("\n".join(lines), file=sys.stdout if status == GOOD else sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m torch_helion.weights",
        description="Inspect, verify and make safetensors files. Exit status: 0 good, 1 bad, 2 "
        "could not check.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], Outcome], help: str) -> Any:
        made = commands.add_parser(name, help=help, description=help)
        made.set_defaults(command=command)
        made.add_argument("file", metavar="FILE", help="a file, an index or a folder with one")
        made.add_argument("--json", action="store_true", help="print JSON")
        return made

    add("inspect", inspect, "check the headers and list the tensors")
    made = add("verify", verify, "compare every byte with a manifest")
    made.add_argument("--manifest", metavar="M", help="default: the one beside the file")
    made.add_argument(
        "--deep", action="store_true", help="digests of whole files too, and a look at the values"
    )
    made = add("convert", convert_file, "pickle checkpoint to safetensors; executes nothing")
    made.add_argument("target", metavar="OUT", help="the safetensors file to write")
    made.add_argument("--report", metavar="R", help="write the report there, as JSON")
    made.add_argument(
        "--allow-lost", action="store_true", help="go on without tensors that have no place there"
    )
    made = add("manifest", write_manifest, "write the manifest of a file or an index")
    made.add_argument("-o", "--output", metavar="M", help="default: beside the file")
    return parser


def inspect(args: argparse.Namespace) -> Outcome:
    """Headers only."""
    with Source(args.file) as source:
        files = {shard: _facts_of(file) for shard, file in source.files.items()}
    lines = []
    for shard, facts in files.items():
        total = sum(t["nbytes"] for t in facts["tensors"].values())
        lines.append(
            f"{shard}: {len(facts['tensors'])} tensors, {total} bytes, data at "
            f"{facts['data_start']}, aligned to {facts['alignment']}"
        )
        lines += [f"  {quoted(k)} = {quoted(v)}" for k, v in facts["metadata"].items()]
        lines += [
            f"  {quoted(name)[1:-1]}  {t['dtype']} {t['shape']}"
            for name, t in facts["tensors"].items()
        ]
        lines += [
            f"  note: the name {quoted(n)} looks like a path" for n in facts["odd_names"][:20]
        ]
    return {"files": files}, lines


def _facts_of(file: WeightFile) -> dict[str, Any]:
    header = file.header
    return {
        "size": file.size,
        "data_start": header.data_start,
        "alignment": header.alignment,
        "metadata": header.metadata,
        "odd_names": odd_names(header),
        "tensors": {
            name: {
                "dtype": info.dtype,
                "shape": list(info.shape),
                "offset": info.begin,
                "nbytes": info.nbytes,
                "alignment": address_alignment(header.data_start + info.begin),
            }
            for name, info in header.tensors.items()
        },
    }


def verify(args: argparse.Namespace) -> Outcome:
    """Every byte against the manifest; ``--deep`` looks at the values, too."""
    with Source(args.file) as source:
        manifest = args.manifest or manifests.default_path(source.path)
        if not os.path.exists(manifest):
            raise FileNotFoundError(f"{args.file}: its manifest {manifest} is not there")
        total = sum(file.size for file in source.files.values())
        with ProgressBar("verify", total * (3 if args.deep else 1)) as bar:
            lines = manifests.verify_source(source, manifest, None, bar, args.deep)
            odd = [sentence for _, sentence in deep.oddities(source, bar)] if args.deep else []
    lines = [f"good: {line}" for line in lines] + [f"note: {sentence}" for sentence in odd]
    return {"manifest": manifest, "notes": odd}, lines


def convert_file(args: argparse.Namespace) -> Outcome:
    """The report goes to its file even if the conversion is refused."""
    with ProgressBar("convert", os.path.getsize(args.file)) as bar:
        report = convert(
            args.file, args.target, report=args.report, allow_lost=args.allow_lost, progress=bar
        )
    lines = [f"{args.target}: {len(report['tensors'])} tensors from {args.file}"]
    lines += [f"  names (nothing of it was run): {name}" for name in report["globals"]]
    lines += [f"  skipped: {entry['name']}: {entry['what']}" for entry in report["skipped"][:50]]
    if len(report["skipped"]) > 50:
        lines.append(f"  ... {len(report['skipped']) - 50} more, see --report")
    lines += [f"  lost: {entry['name']}: {entry['why']}" for entry in report["lost"]]
    return report, lines


def write_manifest(args: argparse.Namespace) -> Outcome:
    """Hash everything once."""
    with Source(args.file) as source:
        target = args.output or manifests.default_path(source.path)
        with ProgressBar("manifest", 2 * sum(f.size for f in source.files.values())) as bar:
            text = manifests.make_manifest(source, None, bar)
    with replacing(target) as out:
        out.write(text.encode("utf-8"))
    return {"manifest": target}, [f"{target}: {len(text)} bytes"]
