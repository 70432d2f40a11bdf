#!/usr/bin/env bash
# LLaSM (arXiv 2308.15930) from speech corpora and written conversations to tables: data, both stages, evaluation.
#
#   SCALE=quickstart recipes/llasm/reproduce.sh     # here, with small real parts; smoke: a few steps of each
#   DATA=... TTS=... recipes/llasm/reproduce.sh
#
# Started again it does only what is missing; a killed training goes on from last.ckpt. OUT is where everything goes.
# The paper has no table of scores: these are word error rates of stage 1, and what InstructS2S-Eval says of stage 2.
# SCALE=paper takes these variables (the paper's own choice in brackets):
#   DATA            folder: LibriSpeech/, data_aishell/, magicdata/, primewords/, as they are unpacked;
#                   texts/*.json (WizardLM, ShareGPT, GPT-4-LLM in English and Chinese; Alpaca's or ShareGPT's layout);
#                   eval/alpaca_eval.json (tatsu-lab/alpaca_eval), eval/question.jsonl (Vicuna's)
#   TTS             of questions, see speechzoo data instruct --help; QUESTION_VOICES (Microsoft Azure: a command)
#   JUDGE           endpoint (with JUDGE_MODEL) or local model; without it S2TIF is "not measured"
#   LLM, WHISPER    names or folders, the paper's by default
#   FIT             further arguments of both trainings, such as --config=recipes/cluster/fsdp2.yaml
#   MAKE            further arguments of speechzoo data instruct, such as --threads 64
#   SHARD           i/n: makes this share of the data and ends; started without it when all are there, the rest
recipes=$(CDPATH='' cd -- "$(dirname "$0")/.." && pwd)
SYSTEM=llasm
. "$recipes/reproduce_lib.sh"

raw=${DATA:-$OUT/raw}
small=(--data.init_args.feature_cache="$OUT/features")
case $SCALE in
  paper)
    LLM=${LLM:-LinkSoul/Chinese-Llama-2-7b} WHISPER=${WHISPER:-large-v2}
    need_set DATA TTS QUESTION_VOICES
    need_path "$raw"/{LibriSpeech,data_aishell,magicdata,primewords,texts,eval/alpaca_eval.json,eval/question.jsonl}
    ready
    corpora=(librispeech="$raw/LibriSpeech" aishell="$raw/data_aishell" magicdata="$raw/magicdata")
    corpora+=(primewords="$raw/primewords" --lower) val=1000
    texts=("$raw"/texts/*.json)
    ask=(--tts "$TTS" --tts-model "${TTS_MODEL:-}" --question-voice $QUESTION_VOICES)
    pretrain=("$recipes"/llasm/pretrain.yaml --vars.llm="$LLM" --vars.whisper="$WHISPER")
    finetune=("$recipes"/llasm/finetune.yaml --vars.llm="$LLM" --vars.whisper="$WHISPER")
    answers=(--max-new-tokens 512)
    recognition=(librispeech-test-clean=LibriSpeech librispeech-test-other=LibriSpeech aishell-1=data_aishell)
    ;;
  quickstart | smoke)
    pairs=(660 100) clips=(300 60) val=20 steps=(--trainer.max_steps=150 --trainer.val_check_interval=75)
    answers=(--max-new-tokens 32) more=()
    [[ $SCALE == smoke ]] && pairs=(24 19) clips=(16 6) val=4 steps=() more=("${few[@]}") answers+=(--limit 6)
    corpora=(librispeech="$raw/LibriSpeech") texts=("$raw/alpaca.json") ask=(--tts quickstart)
    # So few clips do not teach hearing: stage 1 starts from a published adaptor, the paper's from nothing.
    pretrain=("$recipes"/quickstart/llasm_pretrain.yaml --model.init_args.init_from="[llasm-tiny-asr]")
    pretrain+=("${small[@]}" "${steps[@]}" "${more[@]}")
    finetune=("$recipes"/quickstart/llasm_finetune.yaml "${small[@]}" "${more[@]}")
    recognition=(librispeech-test-clean=LibriSpeech)
    stage raw speechzoo data example "$raw" --questions "${pairs[@]}" --clips "${clips[@]}"
    ;;
  *) echo "SCALE=$SCALE: paper, quickstart or smoke" >&2; exit 2 ;;
esac

dataset asr "$OUT/asr" speechzoo data asr "$OUT/asr" "${corpora[@]}" --val "$val"
dataset data "$OUT/spoken" speechzoo data instruct "$OUT/spoken" "${texts[@]}" --style llasm --val "$val" "${ask[@]}" \
  ${MAKE:-}
shared
stage contamination speechzoo data contamination "$OUT/spoken" "$raw/eval/alpaca_eval.json" --key instruction
fit pretrain "${pretrain[@]}" --data.init_args.train="$OUT/asr/train.jsonl" --data.init_args.val="$OUT/asr/val.jsonl"
fit finetune "${finetune[@]}" --model.init_args.init_from="[$OUT/pretrain]" \
  --data.init_args.train="$OUT/spoken/train.jsonl" --data.init_args.val="$OUT/spoken/val.jsonl"
for pair in "${recognition[@]}"; do
  stage "${pair%=*}" speechzoo evaluate pretrain="$OUT/pretrain" --suite "${pair%=*}" --data "$raw/${pair#*=}" \
    --out "$OUT/${pair%=*}" --max-new-tokens 200
done
judge=()
[[ -n ${JUDGE:-} ]] && judge=(--judge "$JUDGE" ${JUDGE_MODEL:+--judge-model "$JUDGE_MODEL"})
stage table speechzoo evaluate ours="$OUT/finetune" --suite instructs2s --data "$raw/eval" --out "$OUT/table" \
  "${ask[@]}" "${answers[@]}" "${judge[@]}"
echo "$OUT/table/table.md"
