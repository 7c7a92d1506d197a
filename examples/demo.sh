#!/usr/bin/env bash
# The whole loop on real text: text → sentences → vectors → shards → a trained concept model → text → scores.
# Every command is printed before it runs; run them yourself one by one if you like. No network, no GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${BIN:-$PWD/.venv/bin}
demo=${DEMO:-demo}
corpus=examples/corpus
start=$SECONDS
train=() evaluate=()
if [ -n "${DEMO_SHORT:-}" ]; then # for CI, which asks whether every command runs: a tenth of each text and of the steps
    corpus=$demo/corpus train=(--trainer.max_steps 40 --optimizer.warmup_steps 5) evaluate=(--limit 20 --roundtrip 100)
    "$bin/python" examples/shorter_corpus.py "$corpus"
fi

step() {
    printf '\n\033[1m%s\033[0m   (%d:%02d)\n' "$1" $(((SECONDS - start) / 60)) $(((SECONDS - start) % 60))
}
run() {
    printf '$ %s\n' "$*"
    "$bin/$1" "${@:2}"
}

step "1. Speeches and a novel become documents of vectors"
run lcm prepare --input "$corpus/sotu.jsonl.xz" "$corpus/moby-dick.jsonl.xz" \
    --max-characters 120 --output "$demo/data/prose"

step "2. Encyclopedia articles and their one-line descriptions become pairs"
run lcm prepare --pairs --input "$corpus/wikipedia/leads-with-descriptions.jsonl.xz" \
    --max-characters 120 --output "$demo/data/pairs"

step "3. Every shard is what the manifest says"
run lcm verify "$demo/data/prose"
run lcm verify "$demo/data/pairs"

step "4. A Two-Tower LCM learns to write the next sentence, and to describe an article"
run lcm train --config configs/two_tower_toy.yaml \
    --data.path "$demo/data/prose" --data.path "$demo/data/pairs" --run.dir "$demo/run" "${train[@]}"

step "5. Three texts that it has never seen, continued"
run lcm generate --model "$demo/run" --input examples/prompts.jsonl --max-sentences 3 --decode both \
    --output "$demo/continuations.jsonl"
"$bin/python" examples/show_continuations.py "$demo/continuations.jsonl" examples/prompts.jsonl

step "6. Scores"
run lcm evaluate --model "$demo/run" --data "$demo/data/prose" "$demo/data/pairs" --output "$demo/report" "${evaluate[@]}"

step "Done"
cat <<END
Open $demo/report/report.html in a browser. What to look at, and why:
  · the headline table: the model beside controls that know nothing. Where it does not beat
    them, it has not learned; where it does, the next sentence is partly predictable from the ones before.
  · the examples: 'decoded' is what the model's vector says; 'nearest' is the closest real sentence
    of the training text, so it always reads well.
  · the summaries: 'roundtrip' is the best any model could score with this codec.
The embedded codec is tiny and knows spelling and position more than meaning: this shows that the
machinery works, not how good concept models are. README.md says how to go on from here.
END
