#!/usr/bin/env bash
# From a finished run to a page on the Hub: measured, exported, reported, pushed, and loaded back.
#
#   recipes/publish.sh ORIGINAL RUN REPO_ID LICENSE TASK...
#   recipes/publish.sh out/mrpc out/mrpc-theseus me/mrpc-small apache-2.0 --task mrpc --data_dir glue
#
# ORIGINAL and RUN are output folders of `kdnlp finetune` and of `kdnlp theseus` or `distill`; TASK are
# the flags that name its rows. HF_TOKEN, or `hf auth login`, says who publishes; HF_ENDPOINT names
# another server than the Hub's; LENGTH is the tokens of an example, 128 unless it is set. Nothing is
# sent unless all that comes before it went well; what comes back is compared with what was sent.
set -euo pipefail
original=$1 run=$2 repo_id=$3 license=$4
shift 4

# What it costs, the two in turns: FLOPs beside latency, and which part takes the time.
kdnlp profile "$original" "$run" --batch_sizes 1,8 --lengths "${LENGTH:-128}" --max_seconds 60 \
    --output_dir "$run-profile"

# A graph for ONNX Runtime, and one in int8 whose metric stands beside it: either is compared with the
# model on the task's rows first. The first goes along to the Hub, below the run's folder.
kdnlp export "$run" --format onnx --output_dir "$run/onnx" "$@"
kdnlp export "$run" --format onnx --quantize dynamic-int8 --output_dir "$run-onnx-int8" "$@"

# The page with tables and plots; name more runs to have them compared.
kdnlp report "$run" --output_dir "$run-report"

sent=$(kdnlp push "$run" --repo_id "$repo_id" --license "$license")
echo "$sent"
# A NAME alone has become OWNER/NAME; the commit is what was sent, whoever pushes next.
repo_id=$(sed -n 's/^repo_id //p' <<< "$sent") commit=$(sed -n 's/^commit //p' <<< "$sent")

# What a stranger gets: loaded from the Hub, written in half precision, evaluated on the same rows.
kdnlp export "$repo_id" --revision "$commit" --format safetensors --dtype float16 \
    --output_dir "$run-from-hub" "$@"
python - "$run/onnx/export.json" "$run-from-hub/export.json" << 'END'
import json
import sys
from pathlib import Path

sent, back = (json.loads(Path(path).read_text(encoding="utf-8")) for path in sys.argv[1:])
for what, first, second in (
    ("weights", sent["source_digest"], back["source_digest"]),
    ("scores", sent["metrics"]["original"], back["metrics"]["original"]),
):
    if first != second:
        sys.exit(f"The {what} from the Hub, {second}, are not those that were sent, {first}.")
print("What came from the Hub is what was sent: the same weights, the same scores.")
END
