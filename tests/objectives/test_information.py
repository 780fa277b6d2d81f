"""InfoPrompt's terms: values, gradients and bounds, by hand."""

import math
import statistics

import pytest
import torch

from house.by_hand import dot, mean_of, nce
from house.families import close
from house.models import DRAWS, B, C, H, M, S, Z, built
from softprompt.objectives import PromptedOutput, info_nce

TERMS = ("head_information", "representation_information", "latent_divergence")


# ---------------------------------------------------------------------- values, by hand


REAL = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1]]).bool()  # full, padded right, padded left


def shown(shared=False, dtype=torch.float32, **changed):
    """A pass on three rows as objectives see it."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    made = {
        "virtual": {0: draw(1 if shared else B, M, H), 2: draw(1, M, H)},
        "tokens": draw(B, S, H),
        "real": REAL,
        "representation": draw(B, H),
        "unprompted": draw(B, H),
        "head_rows": draw(C, H),
    }
    return PromptedOutput(**{**made, **changed})


def term(made, seen, seed=5):
    torch.manual_seed(seed)
    total, terms = made(seen)
    close(total, *terms.values(), 0)
    return total


def mean(vectors):
    return [mean_of(values) for values in zip(*vectors, strict=True)]


def linear(layer, x):
    bias = [0.0] * layer.out_features if layer.bias is None else layer.bias.tolist()
    return [dot(row, x) + b for row, b in zip(layer.weight.tolist(), bias, strict=True)]


def real_tokens(seen, row):
    return [token for token, real in zip(seen.tokens[row].tolist(), seen.real[row].tolist(), strict=True) if real]


def own_tokens(seen, row, prompt):
    return real_tokens(seen, row)


def gaussian(seen, row, prompt):
    torch.manual_seed(5)
    noise = torch.randn(B, DRAWS, H)[row].tolist()
    spread = statistics.stdev(prompt)
    return [[p + spread * e for p, e in zip(prompt, draw, strict=True)] for draw in noise]


def every_row(seen, row, prompt):
    return [mean(found) for found in (real_tokens(seen, other) for other in range(B)) if found]


EXACT = {"scores": "dot", "rows": "mean"}  # the paper's code


def cosine(x, y, temperature=0.1):
    return dot(x, y) / math.sqrt(dot(x, x) * dot(y, y)) / temperature


def product(x, y):
    return dot(x, y) / math.sqrt(H)


def head_by_hand(seen, candidates):
    """The loss of each row, as the paper's code has it."""
    head = mean(seen.head_rows.tolist())
    losses = []
    for row in range(B):
        rows = seen.virtual[0]
        prompt = mean(rows[row if len(rows) > 1 else 0].tolist())
        scores = [product(x, head) for x in (prompt, *candidates(seen, row, prompt))]
        losses.append(nce(scores[0], scores[1:]))
    return losses


def classes_by_hand(seen, candidates):
    """The loss of each row: the virtual tokens, softly the best of them, against the candidates, in its class's direction."""
    losses = []
    for row in range(B):
        own, rows = seen.labels.tolist()[row], seen.virtual[0]
        head = seen.head_rows.tolist()
        others = mean([head[c] for c in range(C) if c != own])
        direction = [x - y for x, y in zip(head[own], others, strict=True)]
        prompt = rows[row if len(rows) > 1 else 0].tolist()
        positive = math.log(mean_of([math.exp(cosine(p, direction)) for p in prompt]))
        losses.append(nce(positive, [cosine(x, direction) for x in candidates(seen, row, mean(prompt))]))
    return losses


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    "negatives, by_hand", [("own_tokens", own_tokens), ("gaussian", gaussian), ("batch", every_row)]
)
def test_head_information_equals_its_formula(negatives, by_hand, shared):
    seen = shown(shared, labels=torch.tensor([2, 0, 2]))
    found = term(built("head_information", negatives=negatives, samples=DRAWS), seen)
    assert found.item() == pytest.approx(mean_of(classes_by_hand(seen, by_hand)), rel=1e-5)
    exact = term(built("head_information", negatives=negatives, samples=DRAWS, **EXACT), seen)
    assert exact.item() == pytest.approx(mean_of(head_by_hand(seen, by_hand)), rel=1e-5)


def test_without_one_label_per_row_the_head_speaks_by_its_mean():
    of_tokens = torch.full((B, S), 1)
    made = built("head_information", scores="dot")
    for labels in (None, of_tokens):
        losses = head_by_hand(seen := shown(virtual={0: torch.ones(B, 1, H)}, labels=labels), own_tokens)
        assert term(made, seen).item() == pytest.approx(mean_of(losses), rel=1e-5)


@pytest.mark.parametrize("kind", ["flags", "numbers"])
def test_labels_that_are_no_single_class_say_where_they_want_the_logits(kind):
    """mean_c (2 y_c - 1) head_c of flags; the head, or its opposite, of numbers above and below the batch's mean."""
    labels = (
        torch.tensor([[1.0, 0, 0], [0, 0, 0], [1, 1, 1]][:B])[:, :C]
        if kind == "flags"
        else torch.tensor([1.0, 5.0, 0.0])
    )
    seen = shown(labels=labels)
    if kind == "numbers":
        seen = shown(labels=labels, head_rows=seen.head_rows[:1])
    losses, head = [], seen.head_rows.tolist()
    for row in range(B):
        if kind == "flags":
            direction = mean(
                [[(2 * y - 1) * x for x in own] for y, own in zip(labels[row].tolist(), head, strict=True)]
            )
        else:
            direction = [x * (1 if labels[row] > labels.mean() else -1) for x in head[0]]
        prompt = seen.virtual[0][row].tolist()
        positive = math.log(mean_of([math.exp(cosine(p, direction)) for p in prompt]))
        losses.append(nce(positive, [cosine(x, direction) for x in own_tokens(seen, row, mean(prompt))]))
    made = built("head_information")
    assert term(made, seen).item() == pytest.approx(mean_of(losses), rel=1e-5)
    others = shown(labels=1 - labels if kind == "flags" else -labels, head_rows=seen.head_rows)
    assert term(made, others).item() != pytest.approx(term(made, seen).item(), rel=1e-3)


@pytest.mark.parametrize("labels", [None, torch.eye(3), torch.rand(3)])
def test_without_a_class_the_head_is_left_alone_too(labels):
    head, rows = torch.randn(C, H, requires_grad=True), torch.randn(1, M, H, requires_grad=True)
    if labels is not None and labels.dim() == 1:
        head = torch.randn(1, H, requires_grad=True)
    elif labels is not None:
        labels = torch.eye(3)[:, :1].expand(-1, C) if C != 3 else labels
    term(built("head_information"), shown(virtual={0: rows}, head_rows=head, labels=labels)).backward()
    assert bool(rows.grad.any()) and head.grad is None


def test_the_head_term_speaks_on_a_probe():
    """The rows of a probe sum to 0: their mean says nothing, the directions of the classes do."""
    torch.manual_seed(2)  # draws whose rows are apart
    rows = torch.randn(C, H)
    rows = rows - rows.mean(0)
    prompt = torch.randn(1, M, H, requires_grad=True)
    seen = shown(virtual={0: prompt}, head_rows=rows, labels=torch.tensor([0, 1, 2]))
    assert not torch.autograd.grad(term(built("head_information", **EXACT), seen), prompt)[0].any()
    assert torch.autograd.grad(term(built("head_information"), seen), prompt)[0].norm() > 1e-3
    # a mean virtual token that all classes pull at stays where it is; several tokens share the classes among them
    apart = shown(virtual={0: torch.zeros(1, C, H).copy_(rows)}, head_rows=rows, labels=torch.tensor([0, 1, 2]))
    alike = shown(virtual={0: rows.mean(0).expand(1, C, H)}, head_rows=rows, labels=torch.tensor([0, 1, 2]))
    made = built("head_information")
    assert term(made, apart) < 0.1 < term(made, alike)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("scores, by_hand", [("cosine", cosine), ("dot", product)])
def test_representation_information_equals_its_formula(scores, by_hand, shared):
    """The candidates are 4 B draws around the same input's own unprompted state."""
    seen, made = shown(shared), built("representation_information", latent=Z, scores=scores)
    critic = made.critics[f"latent{Z}"]
    torch.manual_seed(5)
    noise = {"representation": torch.randn(B, 1, Z), "unprompted": torch.randn(B, 4 * B, Z)}
    losses = []
    for row in range(B):
        rows = seen.virtual[0]
        context = linear(critic.context, mean(rows[row if len(rows) > 1 else 0].tolist()))
        found = []
        for name, draws in noise.items():
            state = getattr(seen, name)[row].tolist()
            mu, log_sigma = linear(critic.mu, state), linear(critic.log_sigma, state)
            for draw in draws[row].tolist():
                z = [m + math.exp(min(max(s, -2), 10)) * e for m, s, e in zip(mu, log_sigma, draw, strict=True)]
                found.append(by_hand(linear(critic.out, z), context))
        assert len(found) == 1 + 4 * B
        losses.append(nce(found[0], found[1:]))
    assert term(made, seen).item() == pytest.approx(mean_of(losses), rel=1e-5)


@pytest.mark.parametrize("above", [0.5, 30.0])  # what is clamped at 10 hides all else
def test_latent_divergence_equals_its_closed_form(above):
    """One coordinate of log sigma lies below its clamp of -2, and one may lie above 10."""
    seen, made = shown(), built("latent_divergence", latent=Z)
    critic = made.critics[f"latent{Z}"]
    with torch.no_grad():
        critic.log_sigma.bias.copy_(torch.tensor([-30.0, 0.0, above]))
    expected = 0.0
    for states in (seen.representation, seen.unprompted):
        for state in states.tolist():
            for mu, raw in zip(linear(critic.mu, state), linear(critic.log_sigma, state), strict=True):
                log_sigma = min(max(raw, -2), 10)
                expected += (0.5 * (mu**2 + math.exp(2 * log_sigma) - 1) - log_sigma) / B
    assert term(made, seen).item() == pytest.approx(expected, rel=1e-5)
    own = torch.distributions.Normal(
        *(f(x) for f, x in zip((lambda m: m, torch.exp), critic.moments(seen.representation), strict=True))
    )
    unit = torch.distributions.Normal(0.0, 1.0)
    alike = shown(unprompted=seen.representation)
    close(term(made, alike), 2 * torch.distributions.kl_divergence(own, unit).sum(-1).mean())


def test_info_nce_counts_valid_candidates_only():
    positive, negative = torch.tensor([0.5, -1.0]), torch.tensor([[1.0, 2.0, 3.0], [0.0, -2.0, 4.0]])
    valid = torch.tensor([[True, False, True], [False, True, False]])
    expected = [nce(0.5, [1.0, 3.0]), nce(-1.0, [-2.0])]
    close(info_nce(positive, negative, valid), torch.tensor(expected))
    close(info_nce(positive, negative), torch.tensor([nce(0.5, [1.0, 2.0, 3.0]), nce(-1.0, [0.0, -2.0, 4.0])]))


def test_a_row_without_a_candidate_gives_zero_and_no_gradient():
    positive = torch.tensor([3.0, -7.0], requires_grad=True)
    loss = info_nce(positive, torch.randn(2, 4), torch.zeros(2, 4, dtype=torch.bool))
    assert torch.equal(loss, torch.zeros(2))
    loss.sum().backward()
    assert torch.equal(positive.grad, torch.zeros(2))
    real = REAL.clone()
    real[1] = False
    seen = shown(real=real)
    losses = head_by_hand(seen, own_tokens)
    assert losses[1] == 0
    assert term(built("head_information", **EXACT), seen).item() == pytest.approx(mean_of(losses), rel=1e-5)
    expected = mean_of(head_by_hand(seen, every_row))  # and it stands for no candidate of the others
    made = built("head_information", negatives="batch", **EXACT)
    assert term(made, seen).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("negatives", ["own_tokens", "gaussian", "batch"])
def test_padding_is_no_candidate(negatives):
    seen = shown()
    elsewhere = shown(tokens=torch.where(REAL.unsqueeze(-1), seen.tokens, torch.tensor(1e4)))
    made = built("head_information", negatives=negatives)
    assert torch.equal(term(made, seen), term(made, elsewhere))
    counted = made.objectives[0].compared(seen)[2].sum(1).tolist()
    assert counted == {"own_tokens": [5, 3, 3], "gaussian": [32] * B, "batch": [B] * B}[negatives]


def test_the_prompt_is_no_candidate_of_its_own():
    """A prompt that scores as each of n tokens does is one among n + 1."""
    same = torch.ones(B, M, H)
    seen = shown(virtual={0: same}, tokens=torch.ones(B, S, H))
    assert term(built("head_information"), seen).item() == pytest.approx((math.log(6) + 2 * math.log(4)) / 3, rel=1e-5)


# ---------------------------------------------------------------------- gradients


@pytest.fixture
def in_double(monkeypatch):
    """Objectives compute in float32 whatever the backbone's precision is; here they leave float64 as it is."""
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("negatives", ["own_tokens", "gaussian", "batch"])
def test_gradients_of_head_information(negatives):
    made = built("head_information", negatives=negatives, samples=DRAWS, rows="mean").double()
    seen = shown(dtype=torch.float64)

    def loss(rows, head_rows):
        return term(made, shown(dtype=torch.float64, virtual={0: rows}, head_rows=head_rows))

    inputs = [x.clone().requires_grad_() for x in (seen.virtual[0], seen.head_rows)]
    if negatives == "gaussian":  # draws stand around the detached prompt: only the head's gradient is the function's
        assert torch.autograd.gradcheck(lambda head_rows: loss(seen.virtual[0], head_rows), inputs[1])
    else:
        assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("name", TERMS[1:])
def test_gradients_of_representation_and_critic(name):
    exact = {TERMS[1]: {"scores": "dot"}, TERMS[2]: {"through_state": True}}[name]
    made, seen = built(name, latent=Z, **exact).double(), shown(dtype=torch.float64)
    names, values = zip(*made.named_parameters(), strict=True)
    used = [k for k in names if name == TERMS[1] or ".mu." in k or ".log_sigma." in k]

    def loss(representation, *parameters):
        torch.manual_seed(5)
        now = shown(dtype=torch.float64, representation=representation)
        return torch.func.functional_call(made, dict(zip(names, parameters, strict=True)), (now,))[0]

    inputs = [seen.representation.clone().requires_grad_(), *(v.detach().requires_grad_() for v in values)]
    assert torch.autograd.gradcheck(loss, inputs)
    found = torch.autograd.grad(loss(*inputs), inputs[1:], allow_unused=True)
    # a shift of mu moves every score of a row alike, so mu's bias has no gradient of the bound
    moved = {k for k, g in zip(names, found, strict=True) if g is not None and g.abs().max() > 1e-9}
    assert moved == set(used) - ({k for k in used if k.endswith("mu.bias")} if name == TERMS[1] else set())


def test_representation_information_reaches_the_prompt_through_the_state_alone():
    rows, state = torch.randn(B, M, H, requires_grad=True), torch.randn(B, H, requires_grad=True)
    seen = shown(virtual={0: rows}, representation=state)
    term(built("representation_information", latent=Z), seen).backward()
    assert rows.grad is None and bool(state.grad.any())


def test_the_head_is_what_the_prompt_is_fitted_to():
    """Class directions leave the head alone; the mean of its rows, as the paper's code has it, does not."""
    labels = torch.tensor([0, 1, 2])
    for how, reached in (({}, False), (EXACT, True)):
        head, rows = torch.randn(C, H, requires_grad=True), torch.randn(1, M, H, requires_grad=True)
        term(built("head_information", **how), shown(virtual={0: rows}, head_rows=head, labels=labels)).backward()
        assert bool(rows.grad.any()) and (head.grad is not None) == reached


def test_the_divergence_regularises_its_head_alone():
    """Through the state it would move the prompt, and more than the information terms do."""
    for through, reached in ((False, False), (True, True)):
        state, made = torch.randn(B, H, requires_grad=True), built("latent_divergence", through_state=through)
        term(made, shown(representation=state)).backward()
        assert (state.grad is not None) == reached
        assert bool(next(iter(made.critics.values())).mu.weight.grad.any())


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("name", TERMS[:2])
def test_gradients_of_cosines(name):
    made, seen = built(name, **({"latent": Z} if name == TERMS[1] else {})).double(), shown(dtype=torch.float64)
    labels = torch.tensor([2, 0, 2])

    def loss(representation, rows, head_rows):
        changed = {"representation": representation, "virtual": {0: rows}, "head_rows": head_rows, "labels": labels}
        return term(made, shown(dtype=torch.float64, **changed))

    inputs = [seen.representation, seen.virtual[0], seen.head_rows]
    inputs[0 if name == TERMS[1] else 1].requires_grad_()
    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("negatives", ["own_tokens", "gaussian", "batch"])
def test_head_information_reaches_prompt_and_head_but_no_draw(negatives):
    rows, head = torch.randn(B, M, H, requires_grad=True), torch.randn(C, H, requires_grad=True)
    made = built("head_information", negatives=negatives, rows="mean")
    seen = shown(virtual={0: rows}, head_rows=head)
    term(made, seen).backward()
    assert bool(rows.grad.any()) and bool(head.grad.any())
    torch.manual_seed(5)
    positive, candidates, _ = made.objectives[0].compared(seen)
    assert torch.autograd.grad(positive.sum(), rows, retain_graph=True)[0].any()
    assert torch.autograd.grad(candidates.sum(), rows, allow_unused=True)[0] is None


def test_what_rounding_leaves_of_a_probes_rows_is_nothing():
    """A probe's rows sum to 0, and those of all-MiniLM-L6-v2 reach 1e30: a rest of 1e23 would be all that the loss sees."""
    first, second = torch.randn(2, H)
    first[1], second[1] = 1e30, -3e29
    rows = torch.stack([first, second, -(first + second)])
    rows[2, 1] *= 1 + 2e-7
    assert rows.mean(0)[1].abs() > 1e22
    prompt, head = torch.randn(B, M, H, requires_grad=True), rows.requires_grad_()
    loss = term(built("head_information", **EXACT), shown(virtual={0: prompt}, head_rows=head))
    loss.backward()
    close(loss, REAL.sum(1).add(1).log().mean(), 1e-6)  # each row's candidates are as likely as its prompt
    assert not prompt.grad.any()
    assert bool(head.grad.any()) and head.grad.abs().max() < 1  # a head that moves can still leave 0


def test_a_direction_of_nothing_has_no_gradient():
    """The derivative of a vector over its length is 1e12 where the vector is 0: clipped, it would leave nothing of the task's."""
    rows, prompt = torch.randn(C, H), torch.randn(B, M, H, requires_grad=True)
    rows[-1] = -rows[:-1].sum(0)
    head = (rows - rows.mean(0)).requires_grad_()
    loss = term(built("head_information", rows="mean"), shown(virtual={0: prompt}, head_rows=head))
    loss.backward()
    assert not prompt.grad.any() and not head.grad.any()
    flat = torch.zeros(B, M, H, requires_grad=True)
    term(built("head_information"), shown(virtual={0: flat}, labels=torch.arange(B) % C)).backward()
    assert not flat.grad.any()


# ---------------------------------------------------------------------- the bound


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 100.0])
def test_the_bound_never_exceeds_the_log_of_the_candidates(scale):
    generator = torch.Generator().manual_seed(int(scale))
    scores = scale * torch.randn(200, 1 + 9, generator=generator)
    valid = torch.rand(200, 9, generator=generator) < 0.6
    most = (1 + valid.sum(1)).log()
    bound = most - info_nce(scores[:, 0], scores[:, 1:], valid)
    assert bool((bound <= most + 1e-6).all())
    separable = most - info_nce(scores[:, 0].abs() + 500, -scores[:, 1:].abs(), valid)
    close(separable, most)
    close(most - info_nce(scores[:, 0], scores[:, :1].expand(-1, 9), valid), torch.zeros(200), 1e-4)  # nothing is told
