#!/bin/sh
# From recordings to an ONNX file: shard, train, score, export, and use the exported model without spkid-dist.
#
#     sh examples/digits_end_to_end.sh [OUT]
#
# Everything is written to the folder OUT, which is `digits_run` by default. The speech is the small corpus of this
# repository. For recordings of your own, change the first four values.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
corpus=$(cd "$here/../tests/corpora/digits" && pwd)
recordings="$corpus/wav" # a recording is wav/KEY.wav
lists="$corpus/cfg"      # one KEY per line, such as FSDD/george/0_george_5; its second part names the speaker
sample_rate=8000         # Hz; nothing is resampled
out=${1:-digits_run}

# 1. Shard: compute log-mel features of the recordings, once, and pack them. The second list takes the speaker map of the
#    first one, so that a class has the same number in both.
for part in train test; do
    spkid shard --source audio --db_path "$recordings" --list "$lists/all.$part" --spk2idx "$out/spk2idx.json" \
        --features.sample_rate "$sample_rate" --out "$out/$part"
done

# 2. Train. The corpus is small, so batches are small too.
spkid train --tr_shards "$out/train" --va_shards "$out/test" --in_frames 11 --batch_size 100 --normalize global \
    --epoch 5 --save_path "$out/ckpt"

# 3. Score the test recordings with the best weights of the training.
spkid score --db_path "$recordings" --te_list_file "$lists/all.test" --model "$out/ckpt" --log_file "$out/scores.log"

# 4. Export the network to ONNX, with a model.json that says how to use it.
spkid export --model "$out/ckpt" --format onnx --out "$out/exported"

# 5. Name the speakers again, with onnxruntime and without spkid-dist.
python "$here/onnx_caller.py" "$out/exported" "$recordings" "$lists/all.test" >"$out/onnx.tsv"

# Both programs must name the same speaker for each utterance.
cut -f 1,2 "$out/onnx.tsv" | diff - "$out/scores.log"
echo "the ONNX file names the same speakers as spkid score: $out/onnx.tsv"
