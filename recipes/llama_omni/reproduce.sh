#!/usr/bin/env bash
# LLaMA-Omni (arXiv 2409.06666) from written instructions to the paper's table: data, stage 1, stage 2, evaluation.
#
#   SCALE=quickstart recipes/llama_omni/reproduce.sh     # here, with small real parts; smoke: a few steps of each
#   DATA=... LLM=... WRITER=... recipes/llama_omni/reproduce.sh
#
# Started again it does only what is missing; a killed training goes on from last.ckpt. OUT is where everything goes.
# SCALE=paper takes these variables (the paper's own choice in brackets):
#   DATA            folder: alpaca_data.json, ultrachat.jsonl (train_0 and train_1, one after the other),
#                   eval/alpaca_eval.json (tatsu-lab/alpaca_eval), eval/question.jsonl (Vicuna's),
#                   mhubert_base_vp_en_es_fr_it3_L11_km1000.bin (fairseq), vocoder/ (fairseq's unit HiFi-GAN: g_00500000,
#                   config.json)
#   WRITER          that rewrites and answers: endpoint (with WRITER_MODEL) or local model (Llama-3-70B-Instruct)
#   TTS             of questions, see speechzoo data instruct --help; QUESTION_VOICES (CosyVoice-300M-SFT, two voices)
#   ANSWER_TTS      of answers; ANSWER_VOICE (VITS trained on LJSpeech)
#   JUDGE           endpoint (with JUDGE_MODEL) or local model (GPT-4o); without it S2TIF and S2SIF are "not measured"
#   LLM, WHISPER, HUBERT    names or folders, the paper's by default
#   FIT             further arguments of both trainings, such as --config=recipes/cluster/fsdp2.yaml
#   MAKE            further arguments of speechzoo data instruct, such as --threads 64
#   SHARD           i/n: makes this share of the data and ends; started without it when all are there, the rest
recipes=$(CDPATH='' cd -- "$(dirname "$0")/.." && pwd)
SYSTEM=llama_omni
. "$recipes/reproduce_lib.sh"

raw=${DATA:-$OUT/raw}
small=(--data.init_args.feature_cache="$OUT/features")
case $SCALE in
  paper)
    LLM=${LLM:-meta-llama/Llama-3.1-8B-Instruct} WHISPER=${WHISPER:-large-v3} HUBERT=${HUBERT:-voidful/mhubert-base}
    need_set DATA WRITER TTS ANSWER_TTS QUESTION_VOICES ANSWER_VOICE
    km=$raw/mhubert_base_vp_en_es_fr_it3_L11_km1000.bin
    need_path "$raw"/{alpaca_data.json,ultrachat.jsonl,eval/alpaca_eval.json,eval/question.jsonl,vocoder} "$km"
    ready
    texts=("$raw/alpaca_data.json#50000" "$raw/ultrachat.jsonl#150000") val=1000
    write=(--llm "$WRITER" --llm-model "${WRITER_MODEL:-}")
    ask=(--tts "$TTS" --tts-model "${TTS_MODEL:-}" --question-voice $QUESTION_VOICES)
    speak=(--answer-tts "$ANSWER_TTS" --answer-tts-model "${ANSWER_TTS_MODEL:-}" --answer-voice $ANSWER_VOICE)
    units=(--hubert "$HUBERT" --layer 11 --kmeans "$OUT/km1000.safetensors" --device "${DEVICE:-cuda}")
    stage1=("$recipes"/llama_omni/stage1.yaml --vars.llm="$LLM" --vars.whisper="$WHISPER")
    stage2=("$recipes"/llama_omni/stage2.yaml --vars.llm="$LLM" --vars.whisper="$WHISPER")
    listen=(--vocoder "$raw/vocoder" --recogniser large-v3 --max-new-tokens 256)
    # By its file too: one that was ended before its marker, or another job of the array, has made it already.
    [[ -f $OUT/km1000.safetensors ]] || stage clusters speechzoo data convert-kmeans "$km" "$OUT/km1000.safetensors"
    ;;
  quickstart | smoke)
    pairs=(660 100) val=20
    [[ $SCALE == smoke ]] && pairs=(24 19) val=4 small+=("${few[@]}")
    texts=("$raw/alpaca.json") write=(--llm rule) ask=(--tts quickstart)
    speak=(--answer-voice joe-steady)  # as the quickstart's answers are spoken
    units=(--hubert whisper-tiny.en --layer 3 --kmeans unit-vocoder-tiny)
    # 660 questions are too few to learn hearing from: stage 1 starts from a published adaptor, the paper's from nothing.
    stage1=("$recipes"/quickstart/llama_omni_stage1.yaml "${small[@]}" --model.init_args.init_from="[llama-omni-tiny-asr]")
    stage2=("$recipes"/quickstart/llama_omni_stage2.yaml "${small[@]}")
    listen=(--vocoder unit-vocoder-tiny --recogniser part:whisper-tiny.en --max-new-tokens 32)
    [[ $SCALE == smoke ]] && listen+=(--limit 6 --latency 1) || listen+=(--latency 3)
    stage raw speechzoo data example "$raw" --questions "${pairs[@]}"
    ;;
  *) echo "SCALE=$SCALE: paper, quickstart or smoke" >&2; exit 2 ;;
esac

dataset data "$OUT/s2s" speechzoo data instruct "$OUT/s2s" "${texts[@]}" --style llama_omni --val "$val" \
  "${write[@]}" "${ask[@]}" "${speak[@]}" "${units[@]}" ${MAKE:-}
shared
stage contamination speechzoo data contamination "$OUT/s2s" "$raw/eval/alpaca_eval.json" --key instruction
manifests=(--data.init_args.train="$OUT/s2s/train.jsonl" --data.init_args.val="$OUT/s2s/val.jsonl")
fit stage1 "${stage1[@]}" "${manifests[@]}"
fit stage2 "${stage2[@]}" "${manifests[@]}" --model.init_args.init_from="[$OUT/stage1]" \
  --data.init_args.state_cache="$OUT/states"
judge=()
[[ -n ${JUDGE:-} ]] && judge=(--judge "$JUDGE" ${JUDGE_MODEL:+--judge-model "$JUDGE_MODEL"})
stage table speechzoo evaluate ours="$OUT/stage2" --suite instructs2s --data "$raw/eval" \
  --out "$OUT/table" "${ask[@]}" "${listen[@]}" "${judge[@]}"
echo "$OUT/table/table.md"
