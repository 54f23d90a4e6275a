"""GptOssModel's forward pass over packed rows, fast at toy size: on the parameters of Transformers'
classes, every expert for every token as two plain products, and each layer compiled.

Experts that the router did not choose get weight zero, so this computes what Transformers computes;
train.py checks that. Expert weights go through MXFP4 rounding with the gradient passed straight on:
`rounding` 0 is none of it, 1 all of it.
"""

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import checkpoint
import mxfp4

NEGATIVE = -1e30


class Embedding(torch.autograd.Function):
    """F.embedding, whose gradient is a product: always the same sum in the same order."""

    @staticmethod
    def forward(context, ids, weight, dtype):
        context.save_for_backward(ids)
        context.rows, context.kind = weight.shape[0], weight.dtype
        return F.embedding(ids, weight).to(dtype)

    @staticmethod
    def backward(context, gradient):
        (ids,) = context.saved_tensors
        rows = torch.arange(context.rows, device=ids.device)
        chosen = (ids.reshape(-1, 1) == rows).to(gradient.dtype)
        gradient = gradient.reshape(-1, gradient.shape[-1])
        return None, (chosen.T @ gradient).to(context.kind), None


def _norm(x, weight):
    x32 = x.float()
    return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + 1e-5) * weight).to(x.dtype)


def _rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def _heads(x, p, cos, sin):
    """Rotated q, k and v, [B, heads, T, head_dim]."""
    batch, length, _ = x.shape
    split = lambda y, heads: y.view(batch, length, heads, checkpoint.HEAD_DIM).transpose(1, 2)
    q = split(F.linear(x, p["q_proj.weight"], p["q_proj.bias"]), checkpoint.HEADS)
    k = split(F.linear(x, p["k_proj.weight"], p["k_proj.bias"]), checkpoint.KV_HEADS)
    v = split(F.linear(x, p["v_proj.weight"], p["v_proj.bias"]), checkpoint.KV_HEADS)
    return _rotate(q, cos, sin).to(x.dtype), _rotate(k, cos, sin).to(x.dtype), v


def _attend(q, k, v, sinks, mask):
    """Attention with sinks, `mask` [B, T, T]."""
    group = checkpoint.HEADS // checkpoint.KV_HEADS
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.matmul(q, k.transpose(2, 3)).float() * checkpoint.HEAD_DIM**-0.5
    scores = torch.where(mask[:, None], scores, NEGATIVE)
    sinks = sinks.view(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1)
    weights = torch.softmax(torch.cat((scores, sinks), dim=-1), dim=-1)[..., :-1]
    return torch.matmul(weights.to(q.dtype), v)


def _attend_flex(q, k, v, sinks, mask):
    """The same with a block mask: a softmax without the sink, then what the sink takes."""
    y, logsum = _flex(q, k, v, block_mask=mask, enable_gqa=True, return_lse=True)
    return y * torch.sigmoid(logsum - sinks.view(1, -1, 1)).unsqueeze(-1).to(y.dtype)


_flex = torch.compile(flex_attention)
_block_mask = torch.compile(create_block_mask)


def _masks(document, window):
    """Of full and of sliding layers, for _attend_flex."""

    def full(batch, _head, q, k):
        return (document[batch, q] == document[batch, k]) & (q >= k)

    def sliding(batch, head, q, k):
        return full(batch, head, q, k) & (q - k < window)

    size = (document.shape[0], None, document.shape[1], document.shape[1], document.device)
    return _block_mask(full, *size), _block_mask(sliding, *size)


def _expert_weights(weights, rounding):
    with torch.no_grad():
        change = (mxfp4.rounded(weights) - weights) * rounding
    return weights + change


def _experts(x, p, rounding, counted):
    """(output, balance loss, tokens of each expert)."""
    shape = x.shape
    x = x.reshape(-1, shape[-1])
    logits = F.linear(x.float(), p["router.weight"].float(), p["router.bias"].float())
    top, chosen = torch.topk(logits, checkpoint.CHOSEN, dim=-1)
    zeros = torch.zeros_like(logits)
    weights = zeros.scatter(1, chosen, torch.softmax(top, dim=-1))
    used = zeros.scatter(1, chosen, 1.0) * counted.reshape(-1, 1)
    likely = torch.softmax(logits, dim=-1) * counted.reshape(-1, 1)
    total = counted.sum()
    balance = (used.sum(0) / checkpoint.CHOSEN * likely.sum(0)).sum() / total.square()
    gate_up = _expert_weights(p["experts.gate_up_proj"], rounding)  # [E, H, 2I]
    gate_up = gate_up.permute(1, 0, 2).reshape(checkpoint.HIDDEN, -1)
    # The bias is one more input, so that its gradient is part of a product: a sum over the tokens
    # alone took half of a step. Zeros keep the inputs a multiple of 8.
    bias = F.pad(p["experts.gate_up_proj_bias"].reshape(1, -1), (0, 0, 0, 7))
    one = F.pad(torch.ones_like(x[:, :1]), (0, 7))
    h = torch.cat((x, one), dim=1) @ torch.cat((gate_up, bias)).to(x.dtype)
    h = h.view(x.shape[0], checkpoint.EXPERTS, checkpoint.INTERMEDIATE, 2).float()
    gate, up = h[..., 0].clamp(max=7.0), h[..., 1].clamp(-7.0, 7.0)
    h = (up + 1) * gate * torch.sigmoid(1.702 * gate) * weights[:, :, None]
    down = _expert_weights(p["experts.down_proj"], rounding).reshape(-1, checkpoint.HIDDEN)
    y = h.to(x.dtype).view(x.shape[0], -1) @ down.to(x.dtype)
    y = y + (weights @ p["experts.down_proj_bias"]).to(x.dtype)
    return y.view(shape), balance * checkpoint.EXPERTS, used.sum(0)


def _part(p, prefix, dtype):
    """Parameters below `prefix`, matrices and their biases in `dtype`."""
    return {
        name[len(prefix) :]: value.to(dtype) if "_proj" in name and "experts" not in name else value
        for name, value in p.items()
        if name.startswith(prefix)
    }


def _before(x, p, cos, sin):
    attention = _part(p, "self_attn.", x.dtype)
    return _heads(_norm(x, p["input_layernorm.weight"]), attention, cos, sin)


def _after(x, y, p, rounding, counted):
    attention = _part(p, "self_attn.", x.dtype)
    y = y.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1)
    x = x + F.linear(y, attention["o_proj.weight"], attention["o_proj.bias"])
    t = _norm(x, p["post_attention_layernorm.weight"])
    y, balance, used = _experts(t, _part(p, "mlp.", x.dtype), rounding, counted)
    return x + y, balance, used


class FastModel:
    """Of a GptOssForCausalLM `model`, whose parameters it uses in place."""

    def __init__(self, model, dtype, compiled):
        self.model = model.model
        self.dtype = dtype
        self.flex = compiled
        self.before = torch.compile(_before, fullgraph=True) if compiled else _before
        self.after = torch.compile(_after, fullgraph=True) if compiled else _after
        self.layers = [dict(layer.named_parameters()) for layer in self.model.layers]

    def masks(self, document):
        window = self.model.config.sliding_window
        if self.flex:
            return _masks(document, window)
        position = torch.arange(document.shape[1], device=document.device)
        back = position[:, None] - position[None, :]
        full = (document[:, :, None] == document[:, None, :]) & (back >= 0)
        return full, full & (back < window)

    def rotation(self, length, device):
        angles = torch.arange(length, device=device).float()[:, None]
        angles = angles * self.model.rotary_emb.inv_freq.float()[None, :]
        scale = self.model.rotary_emb.attention_scaling
        return torch.cos(angles) * scale, torch.sin(angles) * scale

    def hidden(self, ids, document, rounding):
        """ids, document [B, T] -> (hidden [B, T, H] after the final norm, balance, used [layers, E])."""
        full, sliding = self.masks(document)
        counted = (document > 0).float()
        cos, sin = self.rotation(ids.shape[1], ids.device)
        attend = _attend_flex if self.flex else _attend
        x = Embedding.apply(ids, self.model.embed_tokens.weight, self.dtype)
        balance, used = 0.0, []
        for p, kind in zip(self.layers, self.model.config.layer_types):
            q, k, v = self.before(x, p, cos, sin)
            mask = full if kind == "full_attention" else sliding
            y = attend(q, k, v, p["self_attn.sinks"], mask)
            x, added, counts = self.after(x, y, p, rounding, counted)
            balance = balance + added
            used.append(counts)
        return _norm(x, self.model.norm.weight), balance / len(self.layers), torch.stack(used)
