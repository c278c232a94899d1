"""What errors of a device are taken for."""

import pytest
import torch

from specprune_ros.policy.device import DeviceError, check_alive, explain, fault_of

ACCESS = 'CUDA error: an illegal memory access was encountered\nCompile with ...'


def behind(error):
    """Another error that was raised while this one was handled."""
    try:
        try:
            raise error
        except RuntimeError:
            raise KeyError('cleaning up') from None
    except KeyError as other:
        return other


@pytest.mark.parametrize(
    'error',
    [
        torch.AcceleratorError(ACCESS),
        RuntimeError('CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`'),
        RuntimeError('cuDNN error: CUDNN_STATUS_INTERNAL_ERROR'),
        RuntimeError('CUDA driver error: unknown error'),
        RuntimeError('Triton Error [CUDA]: an illegal memory access was encountered'),
        behind(torch.AcceleratorError(ACCESS)),
    ],
)
def test_what_means_that_the_device_is_lost(error):
    fault = fault_of(error, 'cuda:1')
    assert fault.lost
    assert fault.message.startswith('cuda:1 was lost: ')
    assert '\n' not in fault.message


@pytest.mark.parametrize(
    ('error', 'account'),
    [
        (
            torch.OutOfMemoryError(
                'CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of '
                '79.10 GiB of which 1.20 GiB is free.'
            ),
            ' (2.00 GiB more wanted, 1.20 GiB free): ',
        ),
        (torch.AcceleratorError('CUDA error: out of memory'), ': '),
        (RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`'), ': '),
    ],
)
def test_what_means_that_memory_ran_out(error, account):
    fault = fault_of(error, 'cuda')
    assert not fault.lost
    assert fault.message.startswith(f'cuda is out of memory{account}')
    assert 'bfloat16' in fault.message


def test_an_allocation_that_truly_fails():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.uint8)
    assert '(1048576.00 GiB more wanted)' in fault_of(caught.value, 'cpu').message
    assert 'out of memory' in str(explain(caught.value, 'cpu'))


@pytest.mark.parametrize('error', [ValueError(ACCESS), RuntimeError('shapes differ'), KeyError()])
def test_other_errors_say_nothing_of_the_device(error):
    assert fault_of(error, 'cuda') is None
    assert explain(error, 'cuda') is None


def test_a_device_that_works_after_an_error_is_not_given_up(monkeypatch):
    lost = torch.AcceleratorError(ACCESS)
    assert 'configure again' in str(explain(lost, 'cpu'))

    def refuse(*args, **kwargs):
        raise torch.AcceleratorError(ACCESS)

    monkeypatch.setattr(torch, 'zeros', refuse)
    assert 'restart the node' in str(explain(lost, 'cpu'))
    with pytest.raises(DeviceError, match='cannot use cpu any more'):
        check_alive('cpu')


def test_a_device_that_is_only_full_is_there(monkeypatch):
    def refuse(*args, **kwargs):
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 MiB.')

    monkeypatch.setattr(torch, 'zeros', refuse)
    check_alive('cpu')
