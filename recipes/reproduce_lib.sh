# What the reproduce.sh of each system share; sourced by them, not run. Paths are relative to the folder it is
# started in.
set -euo pipefail
SCALE=${SCALE:-paper}
OUT=${OUT:-checkpoints/reproduce/$SYSTEM-$SCALE}

# Variables that have to be set and files that have to be there: `ready` tells all that is missing at once.
missing=()
need_set() { local name; for name; do [[ -n ${!name:-} ]] || missing+=("variable $name is not set"); done; }
need_path() { local path; [[ -n ${DATA:-} ]] || return 0; for path; do [[ -e $path ]] || missing+=("$path is not there"); done; }
ready() {
  [[ ${#missing[@]} -eq 0 ]] && return
  printf '%s: SCALE=%s cannot begin:\n' "$0" "$SCALE" >&2
  printf '  %s\n' "${missing[@]}" >&2
  printf 'What each is: the head of %s. Without GPUs and the papers'"'"' data: SCALE=quickstart.\n' "$0" >&2
  exit 2
}

few=(--trainer.max_steps=3 --trainer.val_check_interval=3 --trainer.limit_val_batches=2)  # of SCALE=smoke

# stage NAME COMMAND...: done once; a killed one is started again and goes on by itself. With another command
# (a judge that was not there before) it is done again, and the command says what of the old it takes.
stage() {
  local name=$1 marker=$OUT/done/$1 began=$SECONDS
  shift
  if [[ -f $marker && $(<"$marker") == "$*" ]]; then
    printf '%s: finished before\n' "$name"
    return
  fi
  printf '\n=== %s\n%s\n' "$name" "$*"
  "$@"
  mkdir -p "$OUT/done"
  printf '%s\n' "$*" >"$marker"
  printf '=== %s: %d s\n' "$name" "$((SECONDS - began))"
}

# dataset NAME FOLDER COMMAND...: a data set. With SHARD=i/n that share of it alone, as a job of an array; the start
# without SHARD then joins them all.
dataset() {
  local name=$1 folder=$2
  shift 2
  if [[ -n ${SHARD:-} ]]; then
    stage "$name-${SHARD/\//-of-}" "$@" --shard "$SHARD"
  elif [[ -f $folder/dataset.json ]] && ! grep -q '"shards": 1,' "$folder/dataset.json"; then
    stage "$name" speechzoo data join "$folder"
  else
    stage "$name" "$@"
  fi
}
shared() { [[ -z ${SHARD:-} ]] || exit 0; } # what follows takes the whole data

# fit NAME RECIPE ARGUMENT...: a training stage in $OUT/NAME, continued from its last.ckpt where there is one. Finished on
# other data than there are now, it is not taken for theirs: what follows would mix both.
fit() {
  local name=$1 recipe=$2 stamp=$OUT/done/$1.data word now files=()
  shift 2
  for word; do [[ $word != --data.init_args.@(train|val)=* ]] || files+=("${word#*=}"); done
  now=$(cat /dev/null "${files[@]}" 2>/dev/null | cksum) || true
  if [[ -f $OUT/done/$name && -f $stamp && $(<"$stamp") != "$now" ]]; then
    printf '%s was trained on other data than %s hold now: take another OUT, or delete %s and all that followed\n' \
      "$name" "${files[*]}" "$OUT/$name and $OUT/done/$name" >&2
    exit 1
  fi
  stage "$name" speechzoo fit --config="$recipe" --name="$name" --trainer.default_root_dir="$OUT/$name" "$@" \
    ${FIT:-} --ckpt_path=last
  printf '%s\n' "$now" >"$stamp"
}
