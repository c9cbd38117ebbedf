"""The losses of distillation once more, as loops over examples, classes and positions, in NumPy and float64."""

import numpy as np


def log_softmax(z):
    z = np.asarray(z, np.float64)
    z = z - z.max()
    return z - np.log(np.exp(z).sum())


def kl(log_p, log_q):
    return sum(np.exp(a) * (a - b) for a, b in zip(log_p, log_q) if np.exp(a) > 0)


def by_example(loss):
    """Loop over the examples, whatever their axes."""

    def losses(student, teacher, *more, **options):
        rows = [
            loss(np.asarray(s, np.float64), np.asarray(t, np.float64), *each, **options)
            for s, t, *each in zip(student, teacher, *more)
        ]
        return np.array(rows)

    return losses


@by_example
def soft_targets(s, t, temperature=4.0):
    return temperature**2 * kl(log_softmax(t / temperature), log_softmax(s / temperature))


@by_example
def reverse_kl(s, t, temperature=1.0):
    return temperature**2 * kl(log_softmax(s / temperature), log_softmax(t / temperature))


@by_example
def jsd(s, t, beta=0.5, temperature=1.0):
    q, p = log_softmax(s / temperature), log_softmax(t / temperature)
    if beta == 0:
        return temperature**2 * kl(p, q)
    if beta == 1:
        return temperature**2 * kl(q, p)
    m = np.log(beta * np.exp(p) + (1 - beta) * np.exp(q))
    return temperature**2 * (beta * kl(p, m) + (1 - beta) * kl(q, m))


@by_example
def dkd(s, t, label, temperature=4.0, alpha=1.0, beta=8.0):
    q, p = np.exp(log_softmax(s / temperature)), np.exp(log_softmax(t / temperature))
    binary = kl(np.log([p[label], 1 - p[label]]), np.log([q[label], 1 - q[label]]))
    others = [c for c in range(len(s)) if c != label]
    rest = kl(np.log(p[others] / p[others].sum()), np.log(q[others] / q[others].sum()))
    return temperature**2 * (alpha * binary + beta * rest)


def dist(student, teacher, temperature=1.0, beta=1.0, gamma=1.0):
    q, p = (np.exp([log_softmax(row / temperature) for row in np.asarray(z, np.float64)]) for z in (student, teacher))
    within = np.mean([1 - np.corrcoef(q[:, c], p[:, c])[0, 1] for c in range(q.shape[1])])
    between = np.array([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q, p)])
    return temperature**2 * (beta * between + gamma * within)


def standardize(z):
    return np.array([(row - row.mean()) / (row.std(ddof=1) + 1e-7) for row in np.asarray(z, np.float64)])


@by_example
def top_k_soft_targets(s, t, k=3, temperature=1.0):
    q, p = np.exp(log_softmax(s / temperature)), np.exp(log_softmax(t / temperature))
    kept = np.argsort(-p)[:k]
    rest = [c for c in range(len(p)) if c not in kept]
    ends = [] if not rest else [(p[rest].sum(), q[rest].sum())]
    return temperature**2 * sum(a * (np.log(a) - np.log(b)) for a, b in [*zip(p[kept], q[kept]), *ends])


@by_example
def hint(s, t):
    return np.mean((s - t) ** 2)


@by_example
def attention_transfer(s, t, power=2):
    maps = []
    for f in (s, t):
        f = f.reshape(-1, f.shape[-1])
        a = np.array([np.mean([x**power for x in position]) for position in f])
        maps.append(a / np.linalg.norm(a))
    return np.mean((maps[0] - maps[1]) ** 2)


@by_example
def nst(s, t):
    def channels(f):
        f = f.reshape(-1, f.shape[-1]).T
        return [c / np.linalg.norm(c) for c in f]

    def kernel(a, b):
        return np.mean([(x @ y) ** 2 for x in a for y in b])

    s, t = channels(s), channels(t)
    return kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)


def ofd(student, teacher, margin):
    losses = []
    for s, t in zip(np.asarray(student, np.float64), np.asarray(teacher, np.float64)):
        total = 0.0
        for at in np.ndindex(s.shape):
            target = max(t[at], margin[at[-1]])
            if s[at] > target or target > 0:
                total += (s[at] - target) ** 2
        losses.append(total)
    return np.array(losses)


def vid(student, teacher, spread):
    variance = np.log1p(np.exp(np.asarray(spread, np.float64))) + 1e-5
    losses = []
    for s, t in zip(np.asarray(student, np.float64), np.asarray(teacher, np.float64)):
        each = [((s[at] - t[at]) ** 2 / variance[at[-1]] + np.log(variance[at[-1]])) / 2 for at in np.ndindex(s.shape)]
        losses.append(np.mean(each))
    return np.array(losses)


@by_example
def hcl(s, t):
    total, weight, weights = np.mean((s - t) ** 2), 1.0, 1.0
    height, width, channels = s.shape
    for size in (4, 2, 1):
        if size >= height:
            continue
        weight /= 2
        gaps = []
        columns = min(size, width)
        for i in range(size):
            for j in range(columns):
                rows = slice(i * height // size, -(-(i + 1) * height // size))
                cols = slice(j * width // columns, -(-(j + 1) * width // columns))
                gaps += [np.mean(s[rows, cols, c]) - np.mean(t[rows, cols, c]) for c in range(channels)]
        total += weight * np.mean(np.square(gaps))
        weights += weight
    return total / weights


def huber(x):
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def flat(features):
    return [np.asarray(f, np.float64).ravel() for f in features]


def rkd_distance(student, teacher):
    def distances(f):
        d = np.array([[np.linalg.norm(a - b) for b in f] for a in f])
        return d / d[d > 0].mean()

    s, t = distances(flat(student)), distances(flat(teacher))
    return np.array([np.mean([huber(a - b) for a, b in zip(x, y)]) for x, y in zip(s, t)])


def rkd_angle(student, teacher):
    def unit(x):
        return x / np.linalg.norm(x) if np.linalg.norm(x) > 0 else x

    def cosines(f, i):
        return [[unit(a - f[i]) @ unit(b - f[i]) for b in f] for a in f]

    s, t = flat(student), flat(teacher)
    losses = []
    for i in range(len(s)):
        gaps = np.array(cosines(s, i)) - np.array(cosines(t, i))
        losses.append(np.mean([huber(x) for x in gaps.ravel()]))
    return np.array(losses)


def similarity_preserving(student, teacher):
    def rows(f):
        gram = np.array([[a @ b for b in f] for a in f])
        return [row / np.linalg.norm(row) for row in gram]

    return np.array([np.mean((a - b) ** 2) for a, b in zip(rows(flat(student)), rows(flat(teacher)))])


def pkt(student, teacher, epsilon=1e-7):
    def picked(f):
        f = [x / np.linalg.norm(x) for x in f]
        near = np.array([[(a @ b + 1) / 2 for b in f] for a in f])
        return near / near.sum(1, keepdims=True)

    s, t = picked(flat(student)), picked(flat(teacher))
    return np.array([np.mean([b * np.log((b + epsilon) / (a + epsilon)) for a, b in zip(x, y)]) for x, y in zip(s, t)])


def crd(student, teacher, bank_student, bank_teacher, examples, negatives, normalizer=None, temperature=0.07):
    n, m = len(bank_student), negatives.shape[1]
    losses, means = np.zeros(len(student)), []
    for features, memory, side in ((student, bank_teacher, 0), (teacher, bank_student, 1)):
        scores = []
        for f, own, others in zip(np.asarray(features, np.float64), examples, negatives):
            f = f / np.linalg.norm(f)
            scores.append([np.exp(f @ np.asarray(memory[j], np.float64) / temperature) for j in (own, *others)])
        means.append(np.mean(scores) * n)
        z = means[-1] if normalizer is None else normalizer[side]
        for i, row in enumerate(scores):
            h = np.array(row) / z
            losses[i] += -np.log(h[0] / (h[0] + m / n)) - np.sum(np.log((m / n) / (h[1:] + m / n)))
    return losses, np.array(means)


def conv(x, kernel):
    height, width = kernel.shape[:2]
    out = np.zeros((*x.shape[:3], kernel.shape[3]))
    for n, i, j in np.ndindex(x.shape[:3]):
        for a, b in np.ndindex(height, width):
            row, column = i + a - height // 2, j + b - width // 2
            if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
                out[n, i, j] += x[n, row, column] @ kernel[a, b]
    return out


def normalized(params, x):
    x = conv(x, params["kernel"])
    x = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)
    return x * params["scale"] + params["shift"]


def nearest(x, like):
    out = np.zeros((x.shape[0], like[1], like[2], x.shape[3]))
    for i, j in np.ndindex(like[1:3]):
        out[:, i, j] = x[:, int(i * x.shape[1] / like[1]), int(j * x.shape[2] / like[2])]
    return out


def review(params, students, teachers):
    total, fused = 0.0, None
    for stage in range(len(students) - 1, -1, -1):
        own = params[stage]
        x = normalized(own["inner"], students[stage])
        if fused is None:
            fused = x
        else:
            y = nearest(fused, x.shape)
            z = np.concatenate([x, y], -1) @ own["fuse"]["kernel"] + own["fuse"]["bias"]
            z = 1 / (1 + np.exp(-z))
            fused = x * z[..., 0:1] + y * z[..., 1:2]
        total = total + hcl(normalized(own["outer"], nearest(fused, teachers[stage].shape)), teachers[stage])
    return total
