"""PEFT: an adapter is trained, and engines get it merged into their weights.

Usage: ``python -m examples.trainers.peft_lora SINK_ADDRESS...``
"""

import sys

import torch
from peft import LoraConfig, get_peft_model

from ckpt_transport import Mapping, ParameterServer, rules
from examples.trainers.model import loss_of, model


def main(sinks: list[str], steps: int = 3) -> None:
    trained = get_peft_model(model(), LoraConfig(r=16, lora_alpha=32, target_modules=["0", "2"]))
    mapping = Mapping.of(*rules.of_peft(trained.peft_config))
    optimizer = torch.optim.AdamW(trained.parameters(), lr=2e-3)
    with ParameterServer(rank=0, world_size=1) as server:
        for step in range(1, steps + 1):
            torch.autograd.backward(loss_of(trained))
            optimizer.step()
            optimizer.zero_grad()
            report = server.publish(f"step-{step}", trained.state_dict(), sinks, mapping=mapping)
            assert report is not None, "this is the only source"
            loss = float(loss_of(trained).detach())
            print(f"{report.version}: loss {loss:.6f}, updated in {report.seconds * 1e3:.0f} ms", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
