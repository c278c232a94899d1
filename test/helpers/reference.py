"""SpecPrune, slowly: float64 numpy, whole attention maps, Python sets, written from the paper.

Shares no code with the package. It runs its own decoder from the weights of the one under test and
answers which vision tokens stay. Where two scores lie so close that single precision cannot tell
them apart it says so (``ties``), so that a test can tell a rounding from a fault.
"""

import math
from dataclasses import dataclass, field

import numpy as np

# Relative distance of two scores below which float32 may order them either way.
NEAR = 3e-6


@dataclass
class ReferenceResult:
    """What one query keeps: per boundary the ascending patch ids; what the next one remembers."""

    kept: list = field(default_factory=list)
    union: set = field(default_factory=set)
    prior: np.ndarray | None = None
    confidence: dict = field(default_factory=dict)
    ties: bool = False


class Slow:
    """A Llama decoder on numpy arrays."""

    def __init__(self, decoder):
        config = decoder.config
        self.depth, self.heads, self.causal = config.depth, config.heads, config.causal
        self.width, self.eps, self.theta = config.width, config.rms_norm_eps, config.rope_theta
        self.w = {k: v.double().numpy() for k, v in decoder.state_dict().items()}

    def layer(self, number, x, positions):
        """One layer: rows ``[n, D]`` to rows, and the attention maps ``[heads, n, n]``."""
        name = f'layers.{number - 1}.'
        n, d = len(x), self.width // self.heads
        h = self.norm(x, name + 'attn_norm.weight')
        q, k, v = np.split(h @ self.w[name + 'attn.qkv.weight'].T, 3, axis=1)
        q, k, v = (m.reshape(n, self.heads, d).transpose(1, 0, 2) for m in (q, k, v))
        logits = self.rope(q, positions) @ self.rope(k, positions).transpose(0, 2, 1) / d**0.5
        if self.causal:
            logits = np.where(np.tril(np.ones((n, n), bool)), logits, -np.inf)
        maps = np.exp(logits - logits.max(-1, keepdims=True))
        maps /= maps.sum(-1, keepdims=True)
        mixed = (maps @ v).transpose(1, 0, 2).reshape(n, self.width)
        x = x + mixed @ self.w[name + 'attn.out.weight'].T
        h = self.norm(x, name + 'mlp_norm.weight')
        gate, up = np.split(h @ self.w[name + 'gate_up.weight'].T, 2, axis=1)
        return x + (gate / (1 + np.exp(-gate)) * up) @ self.w[name + 'down.weight'].T, maps

    def norm(self, x, name):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + self.eps) * self.w[name]

    def rope(self, x, positions):
        half = x.shape[-1] // 2
        angle = np.outer(positions, self.theta ** (-np.arange(half) / half))
        cos, sin = np.cos(angle), np.sin(angle)
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def query(slow, hidden, layout, p, mode, prior=None, similarity=None, confidence=None):
    """One query. ``hidden`` ``[L, D]``; ``mode`` 'dense', 'coarse' or 'fine'."""
    return _Query(slow, layout, p, mode, prior, similarity, confidence).run(hidden)


class _Query:
    def __init__(self, slow, layout, p, mode, prior, similarity, confidence):
        self.slow, self.layout, self.p, self.mode = slow, layout, p, mode
        self.old, self.similarity = prior, similarity
        self.known = dict(confidence or {}) if p.confidence_when == 'first' else {}
        self.answer = ReferenceResult()
        self.P = layout.grid[0] * layout.grid[1]
        self.V = layout.cameras * self.P
        depth = layout.depth
        self.local = self.spread_layers(p.layers_local, depth)
        self.globals = self.spread_layers(p.layers_global, depth)
        static = self.local[-1]
        self.updates = self.spread_layers(p.update_layers, depth, static)
        drops = [] if p.drop_ratio == 0 else self.spread_layers(p.prune_layers, depth, static)
        self.drops = [layer for layer in drops if layer < depth]
        self.updates = [u for u in self.updates if self.drops and u <= self.drops[-1]]

    @staticmethod
    def spread_layers(layers, depth, after=0):
        """Layers are written for 32; two of them never fall together."""
        out, last = [], after
        for layer in layers:
            last = max(int(layer * depth / 32 + 0.5), 1, last + 1)
            out.append(last)
        return [layer for layer in out if layer <= depth]

    def rows(self, name):
        groups = {
            'text': list(self.layout.text),
            'prompt': list(self.layout.prompt),
            'action': list(range(*self.layout.action)),
            'last': [self.layout.length - 1],
            'all': list(range(self.layout.length)),
        }
        return groups[name] or groups['action']

    def run(self, hidden):
        layout = self.layout
        x, positions = np.asarray(hidden, np.float64), np.arange(layout.length)
        self.tokens = list(range(self.V))  # patches left, ascending
        self.S, self.raw = {}, {}
        received, local = {}, {}
        for number in range(1, layout.depth + 1):
            x, maps = self.slow.layer(number, x, positions)
            mean = maps.mean(0)  # over heads
            place = {int(pos): row for row, pos in enumerate(positions)}
            columns = [place[layout.vision_start + t] for t in self.tokens]

            def attention(name, mean=mean, place=place, columns=columns):
                queries = [place[r] for r in self.rows(name) if r in place]
                return mean[np.ix_(queries, columns)]

            if number in self.local:
                local[number] = dict(
                    zip(self.tokens, attention(self.p.rows_local).mean(0), strict=True)
                )
            if number in self.globals:
                prior_rows = 'text' if self.p.rows_global == 'auto' else self.p.rows_global
                received[number] = dict(
                    zip(self.tokens, attention(prior_rows).mean(0), strict=True)
                )
            if number in self.updates:
                self.update(number, attention(self.p.rows_layer))
            stay = None
            if self.mode != 'dense':
                if self.p.prefilter and number == self.local[0] and len(self.local) > 1:
                    stay = self.static(local, first=True)
                elif number == self.local[-1]:
                    stay = self.static(local, first=False)
                elif number in self.drops:
                    stay = self.drop()
            if stay is not None:
                self.tokens = sorted(stay)
                self.answer.kept.append((number, self.tokens))
                keep = set(layout.vision_start + t for t in self.tokens)
                mask = [
                    not layout.vision_start <= pos < layout.vision_start + self.V or pos in keep
                    for pos in positions
                ]
                x, positions = x[mask], positions[mask]
        self.remember(received)
        return self.answer

    # Step B: the static union.

    def budget(self, k, factors, camera):
        """K_eff = ceil(alpha K mode camera grid / 256)."""
        fine = self.p.fine_factor if self.mode == 'fine' else 1.0
        factor = factors[min(camera, len(factors) - 1)]
        return math.ceil(round(self.p.alpha * k * fine * factor * self.P / 256, 6))

    def top(self, score, k, camera):
        """The k patches of a camera with the highest score (a dict); absent ones never."""
        ours = [t for t in score if t // self.P == camera and score[t] > 0]
        ours.sort(key=lambda t: (-score[t], t))
        if 0 < k < len(ours):
            self.near(score[ours[k - 1]], score[ours[k]])
        return set(ours[:k])

    def near(self, a, b):
        if a != b and abs(a - b) < NEAR * max(abs(a), abs(b)):
            self.answer.ties = True

    def static(self, local, first):
        p, cameras = self.p, range(self.layout.cameras)
        union, fused, bound = set(), dict.fromkeys(range(self.V), 0.0), 0
        sources = [(s, p.k_local * (2 if first else 1), True) for s in local.values()]
        if self.old is not None:
            sources += [(dict(enumerate(row)), p.k_global, False) for row in self.old]
        for score, k, twice in sources:
            for camera in cameras:
                budget = self.budget(k, p.camera_factor, camera)
                if first and twice:  # twice the budget, not the budget of twice K
                    budget = 2 * self.budget(p.k_local, p.camera_factor, camera)
                union |= self.top(score, budget, camera)
            total = sum(score.values())
            for t in score:
                fused[t] += score[t] / total
        if self.similarity is not None and p.k_dynamic:
            union |= self.dynamic()
        for camera in p.cameras_kept:
            union |= set(range(camera * self.P, (camera + 1) * self.P))
        for camera in cameras:
            if camera in p.cameras_kept:
                bound += self.P
                continue
            requested = (
                (2 if first else len(self.p.layers_local))
                * self.budget(p.k_local, p.camera_factor, camera)
                + len(p.layers_global) * self.budget(p.k_global, p.camera_factor, camera)
                + self.budget(p.k_dynamic, p.camera_factor_dynamic, camera)
            )
            bound += min(self.P, requested)
        union &= set(self.tokens)
        if not first:
            self.answer.union = set(union)
        least = min(self.V, max(1, math.ceil(round(p.keep_min * self.V / 512, 6))))
        if p.exact:
            size = max(least, len(union))
        else:
            size = self.bucket(max(bound, least))
            if first:
                size = max(size, self.bucket(max(self.plain_bound(), least)))
            size = min(size, len(self.tokens))
        rest = sorted(set(self.tokens) - union, key=lambda t: (-fused[t], t))
        extra = max(0, size - len(union))
        if 0 < extra < len(rest):
            self.near(fused[rest[extra - 1]], fused[rest[extra]])
        return union | set(rest[:extra])

    def plain_bound(self):
        p, bound = self.p, 0
        for camera in range(self.layout.cameras):
            requested = (
                len(p.layers_local) * self.budget(p.k_local, p.camera_factor, camera)
                + len(p.layers_global) * self.budget(p.k_global, p.camera_factor, camera)
                + self.budget(p.k_dynamic, p.camera_factor_dynamic, camera)
            )
            bound += self.P if camera in p.cameras_kept else min(self.P, requested)
        return bound

    def bucket(self, size):
        step = self.p.bucket
        return min(self.V, math.ceil(size / step) * step)

    def dynamic(self):
        out = set()
        for camera in range(self.layout.cameras):
            tau = self.p.tau[min(camera, len(self.p.tau) - 1)]
            # The package compares in float32; so does the paper's code.
            tau = float(np.float32(tau))
            k = self.budget(self.p.k_dynamic, self.p.camera_factor_dynamic, camera)
            ours = range(camera * self.P, (camera + 1) * self.P)
            least = sorted(ours, key=lambda t: (self.similarity[t], t))[:k]
            changed = {t for t in ours if self.similarity[t] < tau}
            if self.p.dynamic_rule == 'complement':
                out |= changed | set(least)
            else:
                out |= changed & set(least)
        return out

    # Step C: layer by layer.

    def update(self, number, attention):
        p, n = self.p, attention.shape[1]
        score = attention.mean(0)
        order = sorted(range(n), key=lambda i: (-score[i], self.tokens[i]))
        for a, b in zip(order, order[1:], strict=False):
            self.near(score[a], score[b])
        k = p.slope if p.slope_per_rank else p.slope / n
        # The authors' slope underflows: their ties are single precision's, so S is kept in it.
        number_type = np.float32 if p.slope_per_rank else np.float64
        with np.errstate(over='ignore'):
            weight = 1 / (1 + np.exp(number_type(k) * np.arange(n, dtype=number_type)))
        weight /= weight.sum()
        confidence = 1.0
        if p.confidence != 'none':
            if number not in self.known:
                self.answer.confidence[number] = self.confidence(attention, score)
            confidence = self.known.get(number, self.answer.confidence.get(number))
        if self.mode == 'dense':
            return
        beta, first = number_type(p.beta), not self.S
        for rank, i in enumerate(order):
            t = self.tokens[i]
            s = number_type(weight[rank]) * number_type(confidence)
            old = self.S.get(t, number_type(0))
            self.S[t] = beta * s if first else old + beta * (s - old)
        self.raw = dict(zip(self.tokens, score, strict=True))

    def confidence(self, attention, score):
        p = self.p
        if p.confidence == 'mean_std':
            return score.mean() / (score.std() + p.epsilon)
        share = attention / attention.sum(1, keepdims=True)
        entropy = -(share * np.log(share)).sum(1).mean()
        if p.confidence_normalised:
            entropy /= math.log(attention.shape[1])
        return 1 / (entropy + p.epsilon)

    def drop(self):
        p, n = self.p, len(self.tokens)
        locked = len(p.cameras_kept) * self.P
        others = self.layout.length - self.V
        least = min(self.V, max(1, math.ceil(round(p.keep_min * self.V / 512, 6))))
        if p.drop_of == 'sequence':
            left = math.floor(round((1 - p.drop_ratio) * (n + others), 6)) - others
        else:
            left = n - math.floor(round(p.drop_ratio * (n - locked), 6))
        left = min(n, max(left, locked, least))
        whole = {t for t in self.tokens if t // self.P in p.cameras_kept}

        def key(t):
            tie = -self.raw.get(t, 0.0) if p.tie_break == 'attention' else 0.0
            return (t not in whole, -self.S.get(t, 0.0), tie, t)

        order = sorted(self.tokens, key=key)
        if 0 < left < n:
            self.near(self.S.get(order[left - 1], 0.0), self.S.get(order[left], 0.0))
            # The last bits above zero are a matter of rounding.
            if 0 < self.S.get(order[left - 1], 0.0) < 1e-38:
                self.answer.ties = True
        return order[:left]

    # Step D: what the next query knows.

    def remember(self, received):
        rows = []
        for i, layer in enumerate(self.globals):
            row = np.zeros(self.V)
            seen = list(received[layer])
            row[seen] = [received[layer][t] for t in seen]
            if self.p.prior_fill == 'memory' and self.old is not None and len(seen) < self.V:
                scale = row[seen].sum() / self.old[i][seen].sum()
                gone = np.setdiff1d(np.arange(self.V), seen)
                row[gone] = self.old[i][gone] * scale * self.p.prior_decay
            rows.append(row)
        self.answer.prior = np.stack(rows)
