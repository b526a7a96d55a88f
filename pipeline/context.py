"""One run of one recipe: what every stage can reach."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
import torchvision
from safetensors.torch import load_file, save
from torch import Tensor, nn

from export.boards import BOARDS
from export.errors import InputError, ResourceMissing
from export.files import sha256_of, write_atomic
from export.graph import Graph
from export.tflite_reader import read_tflite
from models.architectures import Table
from models.checkpoints import load_weights
from models.fakequant import fold_and_quantize, learn_scales
from models.features import FeatureNetwork
from models.teachers import EnsembleTeacher, Family, Teacher
from models.weight_selection import select_weights
from models.zoo import TEACHERS, build_student, build_teacher
from pipeline import processes
from pipeline.artifacts import Artifact, Store
from pipeline.augment import Augmentation
from pipeline.data import (
    Dataset,
    Split,
    calibration_images,
    load_dataset,
    to_input,
    with_fewer_training_images,
    with_smaller_validation,
)
from pipeline.recipe import LabelSchedule, Recipe, Schedule
from pipeline.start import start_from_int8
from pipeline.tasks import TASKS, Task
from pipeline.training import Precision, Settings

EVALUATION_BATCH = 256
START_IMAGES = 2000  # that give a student from an int8 file its batch norms
PRETRAINED = "pretrained"
Network = TypeVar("Network", bound=nn.Module)


@dataclass
class Run:
    """A recipe at work, with the artifacts that are complete so far."""

    recipe: Recipe
    recipe_path: Path
    overrides: Sequence[str]
    store: Store
    data_root: Path | None = None
    download: bool = False
    artifacts: dict[str, Artifact] = field(default_factory=dict)

    @cached_property
    def device(self) -> torch.device:
        """An accelerator if there is one, for each process its own; otherwise the CPU.

        Raises:
            InputError: this machine has fewer accelerators than processes.
        """
        kind = torch.accelerator.current_accelerator(check_available=True)
        if kind is None:
            return torch.device("cpu")
        number, there = processes.local_rank(), torch.accelerator.device_count()
        if number >= there:
            raise InputError(
                f"this machine has {there} accelerators: start no more than {there} processes on it"
            )
        torch.accelerator.set_device_index(number)
        # float32 is float32: int8 is simulated in it, and who wants speed has bfloat16.
        torch.backends.cudnn.allow_tf32 = False
        return torch.device(kind.type, number)

    @cached_property
    def dataset(self) -> Dataset:
        """The recipe's images, loaded at the first use."""
        data = self.recipe.data
        whole = load_dataset(
            data.dataset,
            resolution=data.resolution,
            channels=data.channels,
            root=self.data_root,
            seed=self.recipe.seed,
            download=self.download,
            cache_dir=self.store.root.parent / "decoded",
        )
        if data.validation_images is not None:
            whole = with_smaller_validation(whole, data.validation_images, self.recipe.seed)
        if data.train_images is not None:
            whole = with_fewer_training_images(whole, data.train_images, self.recipe.seed)
        return whole

    def training_inputs(self, count: int) -> Iterator[Tensor]:
        """Network inputs of `count` training images, unaugmented, the classes mixed in every batch."""
        images = calibration_images(self.dataset, count, self.recipe.seed)
        return map(to_input, images.split(EVALUATION_BATCH))

    @property
    def task(self) -> Task:
        """What the images are looked at for."""
        return TASKS[self.dataset.task]

    @property
    def recipe_text(self) -> str:
        """The recipe as it was given, with its overrides as comments."""
        changes = "".join(f"# --set {override}\n" for override in self.overrides)
        return changes + self.recipe_path.read_text(encoding="utf-8")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the student's input."""
        return (self.dataset.channels, self.recipe.data.resolution, self.recipe.data.resolution)

    @property
    def augmentation(self) -> Augmentation:
        """How training images vary."""
        return Augmentation(**self.recipe.data.augment.model_dump())

    def settings(self, schedule: Schedule, seed: int | None = None) -> Settings:
        """Plain numbers of one training of this recipe; `seed` None is the recipe's."""
        names = ("epochs", "batch_size", "optimizer", "learning_rate", "momentum", "weight_decay")
        plain = schedule.model_dump(include={*names, "warmup_epochs", "ema"})
        own = self.recipe.seed if seed is None else seed
        if isinstance(schedule, LabelSchedule):
            plain |= {"precision": self._precision(schedule), "compile": schedule.compile}
        return Settings(**plain, augmentation=self.augmentation, seed=own, view_seed=self.recipe.seed)

    def _precision(self, schedule: LabelSchedule) -> Precision:
        """The schedule's; where it leaves the choice, bfloat16 on an Nvidia GPU that has it."""
        if schedule.precision != "auto":
            return schedule.precision
        has = self.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if has else "float32"

    def file(self, stage: str, name: str) -> Path:
        """Path of a file that an earlier stage left."""
        return self.artifacts[stage].file(name)

    @property
    def student_seed(self) -> int:
        """Seed of the student's start and of the order of its images."""
        return self.recipe.seed if self.recipe.distil.seed is None else self.recipe.distil.seed

    def new_student(self, seed: int | None = None) -> FeatureNetwork:
        """Return the recipe's student, freshly initialised from a seed; None is its own."""
        torch.manual_seed(self.student_seed if seed is None else seed)
        return build_student(self.student_model, **self.student_arguments())

    def starting_student(self, seed: int) -> FeatureNetwork:
        """Return the recipe's student as its training begins.

        Raises:
            InputError, ModelError: the weights that it starts from are not there or not its own.
        """
        student, start = self.new_student(seed), self.recipe.student.start
        if start is None:
            return student
        path = self.find_weights(start.weights)
        if start.model is None:
            start_from_int8(student, path, self.training_inputs(START_IMAGES))
        else:
            source = self.new_teacher(start.model)
            load_weights(source, path)
            select_weights(student, source)
        return student

    def start_hash(self) -> str | None:
        """Sha256 of the weights file that the student starts from."""
        start = self.recipe.student.start
        return None if start is None else sha256_of(self.find_weights(start.weights))

    @property
    def student_model(self) -> str | Table:
        """The student's name in the zoo, or the recipe's own table."""
        student = self.recipe.student
        if student.table is None:
            return student.model
        return student.table.architecture(
            resolution=self.recipe.data.resolution, classes=len(self.dataset.labels)
        )

    def student_arguments(self) -> dict[str, Any]:
        """What `build_student` and `SuperNetwork` are told beside the model."""
        student, model = self.recipe.student, self.student_model
        # A table is taken as it is written.
        plan = student.strides if isinstance(model, str) else (2,) * model.strides.count(2)
        return {
            "classes": len(self.dataset.labels),
            "channels": self.dataset.channels,
            "resolution": self.recipe.data.resolution,
            "strides": plan,
            "padding": student.padding,
        }

    def new_teacher(self, name: str) -> Teacher:
        """Return one untrained teacher network."""
        torch.manual_seed(self.recipe.seed)
        teacher = self.recipe.teacher
        assert teacher is not None
        return build_teacher(
            name,
            classes=len(self.dataset.labels),
            resolution=self.recipe.data.resolution,
            mean=teacher.mean,
            std=teacher.std,
        )

    def untrained_teacher(self) -> EnsembleTeacher | None:
        """Return the teacher's networks as they start, to see their shapes; None if the recipe has none."""
        recipe = self.recipe.teacher
        if recipe is None:
            return None
        members = [self.new_teacher(name) for name, _ in recipe.networks()]
        return EnsembleTeacher(members, low_precision=recipe.precision == "bfloat16")

    def trained_teacher(self) -> EnsembleTeacher | None:
        """Return the teacher from its artifact, on the device, in eval mode: an ensemble of one or more."""
        teacher = self.untrained_teacher()
        if teacher is None:
            return None
        for number, network in enumerate(teacher.members):
            load_state(network, self.file("teacher", f"member{number}.safetensors"))
        return self.place(teacher).eval()

    def trained_student(self) -> FeatureNetwork:
        """Return the float student from its artifact, on the device, in eval mode."""
        student = self.new_student()
        load_state(student, self.file("distil", "student.safetensors"))
        return self.place(student).eval()

    def quantized_student(self) -> nn.Module:
        """Return the fake-quantised student from its artifact, on the device, in eval mode."""
        network = fold_and_quantize(self.new_student())
        if self.recipe.quantize.learned_scales:
            learn_scales(network)
        load_state(network, self.file("quantize", "quantized.safetensors"))
        return self.place(network).eval()

    def int8_graph(self) -> Graph:
        """Return the int8 graph as it stands in the TFLite file."""
        return read_tflite(self.file("tflite", "model.tflite").read_bytes())

    def place(self, network: Network) -> Network:
        """Move a network to the device, channels last."""
        return network.to(self.device).to(memory_format=torch.channels_last)

    def board_figures(self) -> dict[str, Any]:
        """What the board's file says now of its core and memories."""
        board = BOARDS[self.recipe.board]
        names = ("name", "title", "core", "clock_hz", "sram_bytes", "flash_bytes", "source", "note")
        return {name: getattr(board, name) for name in names}

    def weights_hashes(self) -> list[str]:
        """Sha256 of every weights file that the teacher is loaded from."""
        networks = self.recipe.teacher.networks() if self.recipe.teacher else ()
        return [sha256_of(self.weights_path(name, weights)) for name, weights in networks if weights]

    def weights_path(self, name: str, text: str) -> Path:
        """Find a teacher's weights: absolute, beside the recipe, or under the data folder.

        The text `pretrained` stands for torchvision's ImageNet weights of that name, in the data folder or in
        torch's cache; only with `download` are they fetched.

        Raises:
            InputError: it is in none of these places.
        """
        return self._pretrained_path(name) if text == PRETRAINED else self.find_weights(text)

    def find_weights(self, text: str) -> Path:
        """Find a file of weights: absolute, beside the recipe, or under the data folder.

        Raises:
            InputError: it is in none of these places.
        """
        places = [Path(text).expanduser(), self.recipe_path.parent / text]
        if self.data_root is not None:
            places.append(self.data_root / text)
        for place in places:
            if place.is_file():
                return place
        looked = ", ".join(str(place) for place in places)
        raise InputError(f"no weights file '{text}'; looked at {looked}; name its folder with --data")

    def _pretrained_path(self, name: str) -> Path:
        if not isinstance(TEACHERS[name], Family):
            raise InputError(f"teacher {name} has no pretrained weights; name a file with 'weights'")
        url = torchvision.models.get_model_weights(name).DEFAULT.url
        file, cache = url.rpartition("/")[2], Path(torch.hub.get_dir()) / "checkpoints"
        folders = [cache] if self.data_root is None else [self.data_root / "teachers", cache]
        for folder in folders:
            if (folder / file).is_file():
                return folder / file
        if not self.download:
            looked = ", ".join(map(str, folders))
            raise InputError(f"{file} is not in {looked}; put it there, or fetch it with --download")
        cache.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(cache / file))
        except OSError as error:
            raise ResourceMissing(f"cannot download {url}: {error}") from None
        return cache / file


def inputs_of(split: Split, count: int | None = None) -> Iterator[Tensor]:
    """Network inputs of the first `count` images of a split, in batches, unaugmented."""
    for images in split.images[:count].split(EVALUATION_BATCH):
        yield to_input(images)


def save_state(network: nn.Module, path: Path) -> None:
    """Write a network's state as safetensors."""
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    write_atomic(path, save(state))


def load_state(network: nn.Module, path: Path) -> None:
    """Read a network's state that `save_state` wrote."""
    network.load_state_dict(load_file(path))
