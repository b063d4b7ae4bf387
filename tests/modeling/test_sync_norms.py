# SPDX-License-Identifier: Apache-2.0
"""Two gloo processes: synchronized statistics are the joint batch's, and DDP broadcasts running ones."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ibnorm_hf import IBBatchNorm2d, IBSyncBatchNorm2d

from .test_batch_norms import affine, images

SIZES = (3, 5)


def joint():
    return images((8, 3, 4, 4), torch.float64), torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(2))


def make_norm(cls):
    norm = cls(3, norm_type="ibnorm-t", norm_lambda=2).double()
    with torch.no_grad():
        for parameter, value in zip(norm.parameters(), affine(3, torch.float64), strict=True):
            parameter.copy_(value)
    return norm


def run(norm, x, cotangent):
    x = x.clone().requires_grad_()
    y = norm(x)
    y.backward(cotangent)
    return [y.detach(), x.grad], [norm.weight.grad, norm.bias.grad], [b.clone() for b in norm.buffers()]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), IBBatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))


def loss_of(model, x):
    return (model(x.float()) - x.float().mean((2, 3))[:, :2]).square().mean()


def synchronized(rank):
    x, cotangent = joint()
    mine = slice(0, SIZES[0]) if rank == 0 else slice(SIZES[0], None)
    values, gradients, buffers = run(make_norm(IBSyncBatchNorm2d), x[mine], cotangent[mine].double())
    for gradient in gradients:
        dist.all_reduce(gradient)
    parallel = DistributedDataParallel(IBSyncBatchNorm2d.convert(network()))
    loss_of(parallel, x[4 * rank : 4 * rank + 4]).backward()
    return values, gradients, buffers, [p.grad for p in parallel.parameters()]


def alone(rank):
    norm = IBSyncBatchNorm2d(3)
    try:
        norm(torch.randn(1 if rank == 0 else 0, 3, 1, 1))
    except ValueError as error:
        return str(error)


def broadcast(rank):
    parallel = DistributedDataParallel(network())
    x = images((4, 3, 4, 4), seed=rank)
    loss_of(parallel, x).backward()
    after_training = [b.clone() for b in parallel.buffers()]
    parallel.eval()
    loss_of(parallel, x)
    return after_training, list(parallel.buffers())


JOBS = (synchronized, alone, broadcast)


def process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save({job.__name__: job(rank) for job in JOBS}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """What each job returned in each of two processes."""
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(process, (str(folder),), nprocs=2)
    results = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
    return {job.__name__: [result[job.__name__] for result in results] for job in JOBS}


def test_synchronized_statistics_are_the_joint_batchs(there):
    x, cotangent = joint()
    values, gradients, buffers = run(make_norm(IBBatchNorm2d), x, cotangent.double())
    model = network()
    loss_of(model, x).backward()
    results = there["synchronized"]
    for mine, theirs in zip(values, zip(*(r[0] for r in results), strict=True), strict=True):
        torch.testing.assert_close(torch.cat(theirs), mine)  # two batches of different sizes
    for _, their_gradients, their_buffers, ddp_gradients in results:
        for a, b in zip([*gradients, *buffers], [*their_gradients, *their_buffers], strict=True):
            torch.testing.assert_close(b, a)
        for parameter, gradient in zip(model.parameters(), ddp_gradients, strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)


def test_one_value_over_all_processes_is_an_error(there):
    for message in there["alone"]:
        assert "Expected more than 1 value per channel when training" in message


def test_ddp_broadcasts_running_statistics(there):
    (mine, after), (theirs, after_there) = there["broadcast"]
    assert not torch.equal(mine[0], theirs[0])
    assert all(torch.equal(a, b) for a, b in zip(after, after_there, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(after, mine, strict=True))


def test_convert_keeps_everything_and_is_plain_in_one_process():
    model = network()
    x = images((4, 3, 4, 4))
    expected, state = model(x), dict(model.state_dict(keep_vars=True))
    assert IBSyncBatchNorm2d.convert(model) is model and type(model[1]) is IBSyncBatchNorm2d
    assert all(value is state[name] for name, value in model.state_dict(keep_vars=True).items())
    assert torch.equal(model(x), expected)
    with pytest.raises(ValueError, match="more than 1 value"):
        IBSyncBatchNorm2d(3)(torch.randn(1, 3, 1, 1))
