# SPDX-License-Identifier: Apache-2.0
"""`accelerate launch recipes/train_vision.py RECIPE [--key value ...]`: train a classifier of images and judge it.

The run folder is that of pretraining: config.yaml, metrics.jsonl, checkpoint-N/, model/, data.json, environment.json,
loss.png, eval/validation.json. Beside them eval/robustness.json and eval/robustness.png hold top-1, top-5, loss and
calibration error on clean validation images and under noise, blur and contrast of five severities.
"""

from __future__ import annotations

import sys

from ibnorm_hf.common.errors import UserError

USAGE = "usage: train_vision.py RECIPE [--key value ...], e.g. recipes/resnet/tiny.yaml --norm_type batchnorm"


def main(words: list[str]) -> int:
    """Run and return the exit code: 0 done, 1 failed on the way, 2 asked wrongly, 128 + signal stopped."""
    if not words or words[0].startswith("-"):
        print(USAGE, file=sys.stdout if words in (["-h"], ["--help"]) else sys.stderr)
        return 0 if words in (["-h"], ["--help"]) else 2
    try:
        return _train(words[0], words[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _train(path: str, keys: list[str]) -> int:
    from ibnorm_hf.training.vision import load_vision_recipe, print_plan, train_vision

    recipe = load_vision_recipe(path, keys)
    main_process = recipe.run.process_index == 0
    if recipe.run.dry_run:
        if main_process:
            print_plan(recipe)
        return 0
    result = train_vision(recipe)
    if result.stopped_by is not None:
        print(f"stopped: a checkpoint is in {result.folder}; the same command goes on from it", file=sys.stderr)
        return 128 + result.stopped_by
    if main_process:
        _judge(result, recipe.run.per_device_eval_batch_size)
    return 0


def _judge(result, batch_size: int) -> None:
    from ibnorm_hf.analysis.loss_curve import plot_loss_curve
    from ibnorm_hf.common.paths import write_json
    from ibnorm_hf.evaluation.classification import evaluate_images
    from ibnorm_hf.evaluation.robustness_chart import draw_robustness

    folder, images = result.folder, result.data.validation
    robustness = evaluate_images(result.model, images, result.views.evaluate, batch_size=batch_size)
    write_json(folder / "eval" / "robustness.json", robustness)
    picture = folder / "eval" / "robustness.png"
    draw_robustness(robustness, images[0]["pixel_values"], picture, f"{folder.name}, {len(images):,} images")
    plot_loss_curve(folder)
    clean = robustness["clean"]
    print(f"validation loss {clean['loss']:.4f}  top-1 {clean['top1']:.4f}  top-5 {clean['top5']:.4f}")
    print(f"calibration error {clean['calibration_error']:.4f}  corrupted top-1 {robustness['corrupted_top1']:.4f}")
    print(f"pictures {folder / 'loss.png'} {picture}")
    print(f"run {folder}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
