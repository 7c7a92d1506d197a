#!/usr/bin/env bash
# Stories whose truth is known: made, learned, judged. Then the same loop on real text.
#   text → sentences → vectors → shards → a trained concept model → text → scores
# Every command is printed before it runs; run them yourself one by one if you like. No network, no GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${BIN:-$PWD/.venv/bin}
demo=${DEMO:-demo}
corpus=$demo/corpus
stories=6000 tales=(--trainer.max_steps 1700 --trainer.validate_every 500) train=(--trainer.max_steps 120)
start=$SECONDS
if [ -n "${DEMO_SHORT:-}" ]; then # for CI, which asks whether every command runs
    stories=300 tales=(--trainer.max_steps 40 --trainer.validate_every 20 --optimizer.warmup_steps 5)
    train=(--trainer.max_steps 20 --optimizer.warmup_steps 5)
fi

step() {
    printf '\n\033[1m%s\033[0m   (%d:%02d)\n' "$1" $(((SECONDS - start) / 60)) $(((SECONDS - start) % 60))
}
run() {
    printf '$ %s\n' "$*"
    "$bin/$1" "${@:2}"
}

step "1. A model that comes with lcm, trained for an hour on stories, continues one"
run lcm generate --model tales --text "Anna is a baker who lives near the mill."

step "2. Stories, every sentence of which has a known probability, become documents of vectors, and pairs with gists"
run python data_prep/make_tales.py --level errand --documents $stories --seed 1 --output "$demo/tales/text"
run lcm prepare --input "$demo/tales/text/documents.jsonl" --output "$demo/tales/stories"
run lcm prepare --pairs --input "$demo/tales/text/pairs.jsonl" --output "$demo/tales/gists"

step "3. A Two-Tower LCM learns to continue stories and to sum them up, for four minutes"
run lcm train --config configs/tales.yaml \
    --data.path "$demo/tales/stories" --data.path "$demo/tales/gists" --run.dir "$demo/tales/run" "${tales[@]}"

step "4. What it writes, judged by the truth"
run lcm evaluate --model "$demo/tales/run" --data "$demo/tales/stories" "$demo/tales/gists" --truth \
    --limit 120 --roundtrip 100 --output "$demo/tales/report"
run python examples/show_tales.py "$demo/tales/report/examples.jsonl"

step "5. Real text: speeches, a novel, encyclopedia articles with their one-line descriptions, a tenth of each"
run python examples/shorter_corpus.py "$corpus"
run lcm prepare --input "$corpus/sotu.jsonl.xz" "$corpus/moby-dick.jsonl.xz" \
    --max-characters 120 --output "$demo/data/prose"
run lcm prepare --pairs --input "$corpus/wikipedia/leads-with-descriptions.jsonl.xz" \
    --max-characters 120 --output "$demo/data/pairs"
run lcm verify "$demo/data/prose"
run lcm verify "$demo/data/pairs"

step "6. The same model learns from it, for a minute, and continues three texts that it has never seen"
run lcm train --config configs/two_tower_toy.yaml \
    --data.path "$demo/data/prose" --data.path "$demo/data/pairs" --run.dir "$demo/run" "${train[@]}"
run lcm generate --model "$demo/run" --input examples/prompts.jsonl --max-sentences 3 --decode both \
    --output "$demo/continuations.jsonl"
run python examples/show_continuations.py "$demo/continuations.jsonl" examples/prompts.jsonl
run lcm evaluate --model "$demo/run" --data "$demo/data/prose" "$demo/data/pairs" --limit 100 --roundtrip 100 \
    --output "$demo/report"

step "Done"
cat <<END
Open $demo/tales/report/report.html and $demo/report/report.html in a browser. What to expect of either:
  · the stories: after four minutes a model of five million parameters writes sentences most of which
    are of the language, word for word, and many also fit what was told before. Every wrong word is
    marked, beside what might have been said. Ten minutes make more than eight of ten right (docs/tales.md).
  · real text: word salad. Minutes on a few hundred documents teach a model where texts end and which
    topics go together, and no more: look at the headline table beside controls that know nothing, and
    at 'nearest', the closest real sentence, which always reads well. This part shows the machinery.
The embedded codec is tiny and knows spelling and position more than meaning: none of this says how good
large concept models are. README.md says how to go on from here.
END
