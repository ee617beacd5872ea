"""What Ray Train runs in each of its workers. All do the same (SPMD); rank 0 also writes."""

from __future__ import annotations

from rarl.data.stream import step_batches
from rarl.errors import UserError, storage_fault
from rarl.system.imports import quick_imports
from rarl.system.processes import log_output_to, trainer_threads
from rarl.training.inputs import LoopOutcome, TrainInputs


def train_worker(settings: dict[str, TrainInputs]) -> LoopOutcome:
    """Runs the configured method to its end. Errors that a user can cause are returned, since a
    restart would only repeat them; all workers meet them together (`Workers.local`)."""
    # Not at the top: the driver and Ray Train's controller import this module, and PEFT costs 4 s.
    with quick_imports():
        import ray.train
        import torch

        from rarl.grpo.workers import ALONE, TorchWorkers
        from rarl.training.grpo import train_grpo
        from rarl.training.learner import Learner
        from rarl.training.sft import train_sft

    inputs, context = settings["inputs"], ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    log_output_to(inputs.run_dir.logs / f"train-worker{f'-{rank}' if rank else ''}.log")
    workers = TorchWorkers(rank, size) if size > 1 else ALONE
    if inputs.gpu_share is not None:
        use_share_of_gpu(inputs.gpu_share)
    loop = train_sft if inputs.config.method == "sft" else train_grpo
    try:
        with workers.local():
            learner = Learner.load(inputs)
        if inputs.device == "cpu":
            width = learner.policy.get_base_model().config.get_text_config().hidden_size
            torch.set_num_threads(trainer_threads(width, context.get_local_world_size()))
        learner.require_same_progress(inputs, workers)
        shard = ray.train.get_dataset_shard(f"train-{rank}")
        share = len(range(rank, inputs.config.train.prompts_per_step, size))
        batches = step_batches(shard, share, learner.progress.batches)
        return loop(inputs, learner, batches, workers)
    except UserError as error:
        # Another worker's error has arrived as its text.
        short = "CUDA out of memory" in str(error)
        return LoopOutcome(0, out_of_memory(inputs, error) if short else str(error))
    except torch.cuda.OutOfMemoryError as error:
        return LoopOutcome(0, out_of_memory(inputs, error))
    except OSError as error:
        fault = storage_fault(error, inputs.run_dir.path)
        if fault is None:
            raise
        return LoopOutcome(0, fault)


def use_share_of_gpu(share: float) -> None:
    """Bounds what this process may take of its card (0 to 1). What would not suffice fails here,
    where it is told what to lower, and not in the engine on the same card, which nothing saves."""
    import torch

    torch.cuda.set_per_process_memory_fraction(share)
    # Its attention makes a plan for every new shape, and each group of completions has another.
    torch.backends.cuda.enable_cudnn_sdp(False)


def out_of_memory(inputs: TrainInputs, error: Exception) -> str:
    """Says what to lower."""
    train = inputs.config.train
    share = f"{100 * inputs.gpu_share:.0f} % of " if inputs.gpu_share is not None else ""
    return (
        f"the trainer's memory, {share}the GPU, did not suffice "
        f"({str(error).splitlines()[0]}). Halve "
        f"train.micro_batch_tokens (now {train.micro_batch_tokens}), set "
        "train.gradient_checkpointing=true, or lower rollout.gpu_memory_share (now "
        f"{inputs.config.rollout.gpu_memory_share}), and the same command goes on; `rarl plan` "
        "estimates"
    )
