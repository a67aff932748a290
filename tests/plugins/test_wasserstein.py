"""What is particular to VQ-WAE: the transport from vectors to weighted codes."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from scipy.special import logsumexp

import spectok
from spectok.testing.small import small_tokenizer
from spectok_vq import transport
from spectok_vq.transport import potentials, transport_cost


def make(**options):
    base = {"dim": 4, "num_tokens": 6, "codebook_size": 8}
    return spectok.create_quantizer("wasserstein", **(base | options)).train()


def problem(vectors, codes, dim, seed=0):
    """Return vectors, codes and logarithms of uneven weights."""
    generator = torch.Generator().manual_seed(seed)
    z, e = (torch.randn(n, dim, generator=generator) for n in (vectors, codes))
    return z, e + 0.5, torch.randn(codes, generator=generator).log_softmax(-1)


def cost_of(z, codes, log_weights, epsilon=0.1, num_iterations=200):
    return transport_cost(
        z[None, None],
        codes[None],
        log_weights[None, None],
        epsilon=epsilon,
        num_iterations=num_iterations,
    )[0, 0]


def distances(z, codes):
    return np.square(z[:, None].double().numpy() - codes[None].double().numpy()).sum(-1)


def plan_of(z, codes, log_weights, epsilon, num_iterations):
    """Return the plan that the potentials stand for, its costs, and ε on their scale."""
    phi, width = potentials(
        z[None, None], codes[None], log_weights[None, None], epsilon, num_iterations
    )
    costs, eps = distances(z, codes), width.item()
    logits = log_weights.double().numpy() + (phi[0, 0].double().numpy() - costs) / eps
    return np.exp(logits - logsumexp(logits, axis=1, keepdims=True)) / len(z), costs, eps


# -- the transport itself ---


@pytest.mark.parametrize(("vectors", "codes", "dim"), [(12, 5, 2), (8, 20, 6), (40, 10, 16)])
def test_the_cost_is_that_of_the_linear_programme_within_the_regularisation(vectors, codes, dim):
    z, e, log_weights = problem(vectors, codes, dim)
    costs = distances(z, e)
    rows = np.kron(np.eye(vectors), np.ones(codes))
    columns = np.kron(np.ones(vectors), np.eye(codes))
    weights = log_weights.double().softmax(-1).numpy()
    masses = np.concatenate([np.full(vectors, 1 / vectors), weights])
    exact = linprog(costs.ravel(), A_eq=np.vstack([rows, columns]), b_eq=masses).fun
    for epsilon in (0.5, 0.1, 0.02):
        _, _, eps = plan_of(z, e, log_weights, epsilon, 1)
        found = cost_of(z, e, log_weights, epsilon, num_iterations=500).item()
        assert -1e-3 * exact <= found - exact <= eps * math.log(min(vectors, codes)) + 1e-3 * exact
    assert found == pytest.approx(exact, rel=0.05)


def test_one_vector_pays_the_mean_squared_distance():
    """All mass of one vector goes to the codes in the shares of their weights."""
    z, e, log_weights = problem(1, 6, 3)
    expected = (log_weights.exp() * (z - e).square().sum(-1)).sum()
    assert cost_of(z, e, log_weights).item() == pytest.approx(expected.item(), rel=1e-4)


def test_one_code_receives_every_vector():
    z, e, log_weights = problem(7, 1, 3)
    expected = (z - e).square().sum(-1).mean()
    assert cost_of(z, e, log_weights).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_cost_is_the_dual_form_at_the_plans_cost_and_divergence():
    """W = <plan, cost> + ε KL(plan || product of the marginals), computed apart from the dual."""
    z, e, log_weights = problem(20, 7, 4)
    plan, costs, eps = plan_of(z, e, log_weights, 0.3, 300)
    product = log_weights.double().exp().numpy() / len(z)
    primal = (plan * costs).sum() + eps * (plan * np.log(plan / product)).sum()
    assert cost_of(z, e, log_weights, 0.3, 300).item() == pytest.approx(primal, rel=1e-4)


def test_marginals_hold():
    z, e, log_weights = problem(50, 12, 8)
    apart = []
    for iterations in (5, 20, 300):
        plan, _, _ = plan_of(z, e, log_weights, 0.1, iterations)
        assert np.allclose(plan.sum(1), 1 / 50)
        apart.append(np.abs(plan.sum(0) - log_weights.double().exp().numpy()).sum())
    assert apart[0] > apart[1] > apart[2]
    assert apart[1] < 0.1
    assert apart[2] < 1e-3


def test_gradients_are_those_of_the_plan():
    """At the maximum over φ, dW/de_k = Σ_z plan 2 (e_k - z), and dW/dπ_k is φ_k plus a constant."""
    z, e, log_weights = problem(20, 7, 4)
    plan, _, _ = plan_of(z, e, log_weights, 0.2, 500)
    z, e = z.requires_grad_(), e.requires_grad_()
    logits = log_weights.clone().requires_grad_()
    cost_of(z, e, logits.log_softmax(-1), 0.2, 500).backward()
    plan = torch.from_numpy(plan).float()
    apart = e[None] - z[:, None]  # (P, K, D)
    assert torch.allclose(e.grad, 2 * (plan[..., None] * apart).sum(0), atol=1e-3)
    assert torch.allclose(z.grad, -2 * (plan[..., None] * apart).sum(1), atol=1e-3)
    phi, _ = potentials(z.detach()[None, None], e.detach()[None], log_weights[None, None], 0.2, 500)
    weights = log_weights.exp()
    centred = phi[0, 0] - (weights * phi[0, 0]).sum()
    assert torch.allclose(logits.grad, weights * centred, atol=1e-3)


@pytest.mark.parametrize(
    "options", [{}, {"weights_per": "position"}, {"num_codebooks": 2}], ids=str
)
def test_blocks_change_nothing(options, monkeypatch):
    results = []
    for budget in (4 << 20, 1):
        monkeypatch.setitem(transport.BLOCK_BYTES, "cpu", budget)
        torch.manual_seed(0)
        quantizer, z = make(**options), torch.randn(5, 6, 4, requires_grad=True)
        losses = quantizer(z).losses
        sum(losses.values()).backward()
        gradients = [p.grad for p in quantizer.parameters()]
        results.append([*losses.values(), z.grad, *gradients])
    for whole, parts in zip(*results):
        assert torch.allclose(whole, parts, atol=1e-5)


# -- the quantizer ---


def test_each_run_of_positions_has_its_own_transport():
    quantizer, z = make(num_codebooks=2, transport_weight=1.0), torch.randn(5, 6, 4)
    with torch.no_grad():
        quantizer.weight_logits.normal_()
    log_weights = quantizer.weight_logits.detach().log_softmax(-1)
    parts = [
        cost_of(z[:, 3 * g : 3 * g + 3].flatten(0, 1), code, log_weights[g, 0], num_iterations=20)
        for g, code in enumerate(quantizer.codebook.detach())
    ]
    found = quantizer(z).losses["transport"].item()
    assert found == pytest.approx(torch.stack(parts).mean().item() / 4, rel=1e-4)


def test_a_distribution_per_position_transports_that_positions_vectors():
    quantizer, z = make(weights_per="position", transport_weight=1.0), torch.randn(5, 6, 4)
    with torch.no_grad():
        quantizer.weight_logits.normal_()
    log_weights = quantizer.weight_logits.detach().log_softmax(-1)
    codes = quantizer.codebook.detach()[0]
    parts = [cost_of(z[:, n], codes, log_weights[0, n], num_iterations=20) for n in range(6)]
    found = quantizer(z).losses["transport"].item()
    assert found == pytest.approx(torch.stack(parts).mean().item() / 4, rel=1e-4)


def test_kl_is_zero_for_uniform_weights_and_log_k_for_a_single_code():
    quantizer, z = make(kl_weight=2.0), torch.randn(3, 6, 4)
    assert quantizer(z).losses["kl"].item() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        quantizer.weight_logits[..., 3] = 100
    assert quantizer(z).losses["kl"].item() == pytest.approx(2 * math.log(8), rel=1e-5)


def test_an_unused_code_is_drawn_to_the_vectors_and_a_plain_one_stays():
    """One code far away is nearest to nothing; the transport moves it all the same."""
    z = 0.1 * torch.randn(16, 6, 4)
    moved = {}
    for name in ("vq", "wasserstein"):
        torch.manual_seed(0)
        quantizer = spectok.create_quantizer(name, dim=4, num_tokens=6, codebook_size=8).train()
        with torch.no_grad():
            quantizer.codebook.mul_(0.1)
            quantizer.codebook[0, 5] = 10.0
        output = quantizer(z)
        assert not (output.indices == 5).any()
        sum(output.losses.values()).backward()
        moved[name] = -quantizer.codebook.grad[0, 5]
    assert torch.equal(moved["vq"], torch.zeros(4))
    assert (moved["wasserstein"] < 0).all(), "towards the vectors, which are around zero"


def usage_on_clusters(name, steps=300):
    """Train codes alone on 16 well separated clusters; return how many codes are then in use."""
    torch.manual_seed(0)
    centres = 5 + 3 * torch.randn(16, 8)
    quantizer = spectok.create_quantizer(name, dim=8, num_tokens=4, codebook_size=16).train()
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.05)
    for _ in range(steps):
        z = centres[torch.randint(16, (32, 4))] + 0.1 * torch.randn(32, 4, 8)
        loss = sum(quantizer(z).losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        quantizer.after_step([optimizer])
    z = centres[torch.randint(16, (256, 4))] + 0.1 * torch.randn(256, 4, 8)
    return len(quantizer.encode(z).unique())


def test_all_codes_are_used_on_clusters_where_plain_codes_collapse():
    used = {name: usage_on_clusters(name) for name in ("vq", "wasserstein")}
    assert used["wasserstein"] == 16, used
    assert used["vq"] < 8, used


@pytest.mark.slow
def test_weights_follow_the_clusters_as_far_as_the_divergence_allows():
    """Two codes fixed on two clusters of masses 3 : 1: weights go there, or stay uniform."""
    weights = {}
    for kl_weight in (1e-4, 10.0):
        quantizer = make(dim=2, num_tokens=4, codebook_size=2, kl_weight=kl_weight)
        with torch.no_grad():
            quantizer.codebook.copy_(torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]]))
        z = quantizer.codebook.detach()[0, torch.tensor([[0, 0, 0, 1]])].repeat(8, 1, 1)
        optimizer = torch.optim.Adam([quantizer.weight_logits], lr=0.02)
        for _ in range(200):
            optimizer.zero_grad()
            sum(quantizer(z).losses.values()).backward()
            optimizer.step()
        weights[kl_weight] = quantizer.weight_logits.softmax(-1)[0, 0, 0].item()
    assert weights[1e-4] == pytest.approx(0.75, abs=0.05)
    assert weights[10.0] == pytest.approx(0.5, abs=0.02)


def test_eval_takes_the_nearest_code_and_measures_no_transport():
    quantizer, z = make().eval(), torch.randn(3, 6, 4)
    output = quantizer(z)
    nearest = torch.cdist(z, quantizer.codebook[0]).argmin(-1)
    assert torch.equal(output.indices.squeeze(-1), nearest)
    assert output.losses == {}


def test_vqwae_is_vqvae_but_for_its_codebook():
    vqwae, vqvae = small_tokenizer("vqwae"), small_tokenizer("vqvae")
    networks = [
        {n: p.shape for n, p in model.named_parameters() if not n.startswith("quantizer")}
        for model in (vqwae, vqvae)
    ]
    assert networks[0] == networks[1]
    assert type(vqwae.quantizer) is type(make())
