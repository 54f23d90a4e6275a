#!/usr/bin/env python3
"""The held-out sets through Conclave: Chat, ClassifySequence and ClassifyTokens of `conclave serve` with
CPU workers, greedy decoding.

    evaluate.py --model demo/small_gpt_oss --conclave bazel-bin/client/conclave [--workers 4]

Conversations go in, events come out; the server's rendering is compared with that of the training data,
token for token. Prints the figures beside those that evaluate_transformers.py recorded in the model's
folder, and exits 1 where they are more than a point apart, or a prompt differs. Needs `tokenizers`,
`numpy`, `grpcio` and `grpcio-tools`; no PyTorch.
"""

import argparse
import concurrent.futures
import json
import os
import sys
import time

import grpc

import data
import score
import service
import tokenizer as tokenizers

LIMIT = 160  # tokens of a reply
TRIES = 6
GREEDY = service.generation.SamplingParams(temperature=0)


def steadily(call):
    """call(), again where a busy machine's worker missed its heartbeats and the group forms anew."""
    for left in reversed(range(TRIES)):
        try:
            return call()
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE or not left:
                raise
            print(error.details(), file=sys.stderr)
            time.sleep(5)


def rendered(server, conversation):
    """The prompt that the server makes of `conversation`."""
    request = service.generation.GenerateRequest(
        prompt={"conversation": conversation}, sampling=GREEDY, stop={"max_tokens": 1}, echo=True
    )
    parts = steadily(lambda: list(server.generation.Generate(request)))
    return [token for part in parts for token in part.prompt.tokens]


def reply(server, conversation):
    """(text, calls [(name, arguments)], finish) of a Chat."""
    request = service.generation.ChatRequest(
        conversation=conversation, sampling=GREEDY, stop={"max_tokens": LIMIT}
    )
    text, calls, finish = "", {}, None
    for event in steadily(lambda: list(server.generation.Chat(request))):
        text += event.text_delta
        if event.HasField("tool_call"):
            call = calls.setdefault(event.tool_call.index, [event.tool_call.name, ""])
            call[1] += event.tool_call.arguments
        if event.HasField("finish"):
            finish = event.finish
    return text, [tuple(call) for call in calls.values()], finish


def judge_chat(server, case):
    """(skill, right, well-formed, whether the prompt is that of training)."""
    conversation = service.to_conversation(case["conversation"])
    same = rendered(server, conversation) == case["prompt"]
    text, calls, finish = reply(server, conversation)
    name = service.generation.FinishReason.Name(finish.reason)
    whole = name == ("FINISH_REASON_TOOL_CALLS" if calls else "FINISH_REASON_STOP")
    formed = whole and not finish.malformed
    return case["skill"], formed and score.is_right(case, text, calls), formed, same


def _trimmed(span, text):
    begin, end = span.start_char, span.end_char
    while begin < end and text[begin] == " ":
        begin += 1
    return begin, end, span.label


def tag(server, cases):
    """(wanted, found) spans of each text, in one call."""
    request = service.classification.ClassifyTokensRequest(
        head="pii", inputs=[{"text": case["text"]} for case in cases]
    )
    response = steadily(lambda: server.classification.ClassifyTokens(request))
    return [
        (set(case["spans"]), {_trimmed(span, case["text"]) for span in result.spans})
        for case, result in zip(cases, response.results, strict=True)
    ]


def name_languages(server, cases):
    """Whether each sentence's language is found, in one call."""
    request = service.classification.ClassifySequenceRequest(
        head="language", inputs=[{"text": case["text"]} for case in cases], top_k=1
    )
    response = steadily(lambda: server.classification.ClassifySequence(request))
    return [
        case["language"] == result.labels[0].label
        for case, result in zip(cases, response.results, strict=True)
    ]


def evaluate(server, sets, at_once):
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        judged = list(pool.map(lambda case: judge_chat(server, case), sets["chat"]))
    pairs, right = tag(server, sets["pii"]), name_languages(server, sets["language"])
    result = score.summary([case[:3] for case in judged], pairs, right)
    result["prompts_as_trained"] = sum(case[3] for case in judged)
    return result


def compare(result, recorded):
    """Whether the figures are within a point of the recorded ones, and all prompts those of training."""
    near = True
    for name, scale in (
        ("chat_right", 1),
        ("well_formed", 1),
        ("sequence_accuracy", 1),
        ("span_f1", 100),
    ):
        got, wanted = result[name] * scale, recorded[name] * scale
        print(f"{name:18} {got:6.2f} through Conclave, {wanted:6.2f} through Transformers")
        near = near and abs(got - wanted) <= 1
    same, chats = result["prompts_as_trained"], result["cases"]["chat"]
    print(f"{same} of {chats} conversations are rendered as in training, token for token")
    return near and same == chats


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--conclave", required=True)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--chats", type=int, help="default: as recorded")
    parser.add_argument("--texts", type=int, help="default: as recorded")
    parser.add_argument("--at-once", type=int, default=8, help="requests")
    parser.add_argument("--output", help="file for the figures")
    args = parser.parse_args()
    with open(os.path.join(args.model, "transformers.json"), encoding="utf-8") as file:
        recorded = json.load(file)
    encoder = data.Encoder(tokenizers.load(os.path.join(args.model, "tokenizer.json")))
    chats = args.chats or recorded["cases"]["chat"]
    texts = args.texts or recorded["cases"]["texts"]
    sets = data.held_out(recorded["seed"], encoder, chats, texts)
    with service.Server(args.conclave, args.model, args.workers) as server:
        result = evaluate(server, sets, args.at_once)
    result["seed"] = recorded["seed"]
    result["with"] = (
        f"Chat, ClassifySequence and ClassifyTokens of conclave serve, {args.workers} CPU workers"
    )
    if args.output:
        with open(args.output, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)
            file.write("\n")
    print(json.dumps(result))
    sys.exit(0 if compare(result, recorded) else 1)


if __name__ == "__main__":
    main()
