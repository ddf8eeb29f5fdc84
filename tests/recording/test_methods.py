"""Several methods at once: their keys, and their maps against those of the methods themselves."""

import random
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from captum.attr import InputXGradient, LayerGradCam, Saliency
from torch import nn

from fg_lightning import FullGrad, FullGradRecorder
from fg_lightning.attribution import METHODS, method_from
from fg_lightning.history import History
from fg_lightning.recording.explainer import Explainer
from fg_lightning.recording.messages import Messages
from fg_lightning.recording.methods import describe_zero_maps, methods_by_key
from fg_lightning.recording.probe import Probe
from tests.helpers.attribution_cases import FAST
from tests.helpers.model_state import assert_unchanged, state_of
from tests.helpers.undisturbed_networks import NETWORKS

pytestmark = pytest.mark.filterwarnings("ignore:FullGrad", "ignore:.*guided_backprop found no ReLU")

LABELS = torch.tensor([2, 0, 1, 2])


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(256, 3))


def images(n=4):
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def explained(model, method, labels=LABELS, **options):
    explainer = Explainer(Probe(images(), labels), task=None if callable(options.get("target")) else "classes", **options)
    explainer.explain(model)
    return explainer.draw_maps(method, model)


# --- keys


class ScoreCAM:
    def __init__(self, model):
        pass


KEYS = {
    "a name": ("gradcam", ["gradcam"]),
    "names": (["fullgrad", "gradcam"], ["fullgrad", "gradcam"]),
    "a class": (ScoreCAM, ["score_cam"]),
    "a class of METHODS": ([FullGrad, METHODS["gradcam"]], ["fullgrad", "gradcam"]),
    "a function": ([lambda model: None], ["lambda"]),
    "settings": ([partial(METHODS["gradcam"], layer="0")], ["gradcam"]),
    "an object": ([type("My Own", (), {"__call__": lambda self, model: None})()], ["my_own"]),
    "an import path": (["fullgrad", "captum.attr.InputXGradient"], ["fullgrad", "input_x_gradient"]),
    "a mapping": ({"Cam of 0": partial(METHODS["gradcam"], layer="0"), "gradcam": "gradcam"}, ["cam_of_0", "gradcam"]),
}


@pytest.mark.parametrize("name", KEYS)
def test_keys_are_names(name):
    methods, keys = KEYS[name]
    assert list(methods_by_key(methods)) == keys
    assert list(methods_by_key(methods_by_key(methods))) == keys  # as a recorder gets them from a monitor


REFUSED = {
    "none": ((), ValueError, "must name at least one"),
    "unknown": (["fullgrad", "grad_cam"], ValueError, "no method 'grad_cam'; did you mean 'gradcam'"),
    "no import path": (["captum.attr.GradCam"], ValueError, "'captum.attr.GradCam' cannot be imported"),
    "twice": (["gradcam", partial(METHODS["gradcam"], layer="0")], ValueError, "two methods have the key 'gradcam'; give each"),
    "no method": ([3], TypeError, "must be a name or a function"),
    "another FullGrad": ([partial(FullGrad, psi="signed")], ValueError, "cannot have the key 'fullgrad' here"),
    "a folder of the run": ([Saliency], ValueError, "cannot have the key 'saliency' here.*my_saliency"),
}


@pytest.mark.ill_typed
@pytest.mark.parametrize("name", REFUSED)
def test_others_are_refused_with_a_reason(name):
    methods, kind, reason = REFUSED[name]
    with pytest.raises(kind, match=reason):
        methods_by_key(methods)


# --- maps


@pytest.mark.parametrize("method", [name for name in METHODS if name != "fullgrad"])
def test_the_maps_are_those_of_the_method_for_the_explained_class(method, monkeypatch):
    model = network().eval()
    if method in FAST:
        monkeypatch.setitem(METHODS, method, partial(METHODS[method], **FAST[method]))
    expected = METHODS[method](model).attribute(images(), target=LABELS)
    assert torch.allclose(explained(network(), method), expected.detach(), atol=1e-6)  # float32


def test_fullgrads_arguments_go_to_its_versions():
    model, options = network().eval(), {"psi": "signed", "implicit": False}
    expected = METHODS["blurred_fullgrad"](model, **options).attribute(images(), target=LABELS)
    assert torch.allclose(explained(network(), "blurred_fullgrad", **options), expected, atol=1e-6)  # float32
    assert (expected < 0).any()


def test_a_function_of_the_output_gets_the_batch_even_from_methods_that_run_copies_of_it():
    seen = []

    def difference(output):
        seen.append(len(output))
        return output[torch.arange(4), LABELS] - output[torch.arange(4), torch.tensor([0, 1, 2, 0])]

    model = network().eval()
    maps = explained(network(), partial(METHODS["smoothgrad"], num_samples=6, internal_batch_size=16), target=difference)
    assert set(seen) == {4}
    expected = METHODS["smoothgrad"](model, num_samples=6, internal_batch_size=4).attribute(images(), target=difference)
    assert torch.allclose(maps, expected, atol=1e-6)  # float32


def test_captums_own_methods_work_as_they_are():
    model = network().eval()
    found = explained(network(), InputXGradient)
    expected = InputXGradient(model).attribute(images().requires_grad_(), target=LABELS).abs().sum(1, keepdim=True)
    assert torch.allclose(found, expected.detach(), atol=1e-6)  # float32
    coarse = explained(network(), lambda scored: LayerGradCam(scored, scored.get_submodule("1")))
    assert coarse.shape == (4, 1, 8, 8)


def test_layers_have_the_names_that_the_user_knows():
    assert explained(network(), partial(METHODS["gradcam"], layer="1")).shape == (4, 1, 8, 8)
    with pytest.raises(ValueError, match=r"has no layer 'conv'; layers that fit are .*\b0, 1, 2$"):
        explained(network(), partial(METHODS["gradcam"], layer="conv"))


BAD = {
    "of another size": (lambda scores, x: x[:, 0], r"must return maps \[N, 1, \*S\]"),
    "not finite": (lambda scores, x: x[:, :1] / 0 * 0, "not finite"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_map_is_refused(name):
    draw, reason = BAD[name]
    with pytest.raises(ValueError, match=reason):
        explained(network(), method_from(draw))


@pytest.mark.ill_typed  # beartype draws random numbers itself
def test_a_method_that_draws_random_numbers_repeats_and_touches_none():
    def noisy(scores, x):
        return torch.rand(len(x), 1, 8, 8) + np.random.rand() + random.random()

    first = explained(network(), method_from(noisy))
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    assert torch.equal(explained(network(), method_from(noisy)), first)
    torch.manual_seed(0)
    network()
    torch.set_rng_state(before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]


class Leaves:
    """Hooks, switches and flags that it never takes back."""

    def __init__(self, model, fail=False):
        self.model, self.fail = model, fail

    def attribute(self, x, target=None, additional_forward_args=None):
        for module in self.model.modules():
            module.register_forward_hook(lambda *_: None)
            module.register_full_backward_hook(lambda *_: None)
            module.left = True
            module.train()
            for parameter in module.parameters():
                parameter.requires_grad_()
        self.model(x, *(additional_forward_args or ())).sum().backward()
        if self.fail:
            raise KeyError("halfway")
        return x[:, :1]


@pytest.mark.ill_typed  # beartype draws random numbers itself
@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "compiled"])
@pytest.mark.parametrize("method", [Leaves, METHODS["smoothgrad"], METHODS["gradcam"], METHODS["guided_backprop"]])
def test_a_network_is_left_as_it_was(method, name, fail):
    torch.manual_seed(0)
    model, x = NETWORKS[name]().train(), torch.rand(2, 3, 6, 6)
    explainer = Explainer(Probe(x, torch.tensor([0, 1])), task="classes")
    explainer.explain(model)
    before = state_of(model, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            explainer.draw_maps(partial(method, fail=fail) if method is Leaves else method, model)
        except (KeyError, RuntimeError, ValueError):
            assert fail or method is Leaves
    assert_unchanged(before, state_of(model, x))


# --- in a run


def record(folder, methods, model=None, **options):
    model = model or network()
    recorder = FullGradRecorder(folder, (images(), LABELS), methods=methods, task="classes", **options)
    with recorder:
        for step in range(3):
            recorder.snapshot(model, step=step, epoch=step)
            torch.nn.init.normal_(model[0].weight, generator=torch.Generator().manual_seed(step))
    return recorder


def test_each_method_has_numbers_and_files_of_its_own(tmp_path):
    recorder = record(tmp_path / "run", ["gradient", "fullgrad"])
    history = History.read(tmp_path / "run")
    assert [s.numbers for s in history.snapshots] == [s.numbers for s in recorder.history.snapshots]
    maps = [history.maps_of("gradient", i) for i in range(3)]
    for i in (1, 2):
        for key, earlier in (("drift", i - 1), ("drift_from_untrained", 0)):
            expected = 1 - torch.cosine_similarity(maps[i].flatten(1), maps[earlier].flatten(1)).mean()
            assert history.snapshots[i].numbers[f"gradient/{key}"] == pytest.approx(float(expected), abs=1e-4)  # float16 maps
    assert maps[2].flatten(1).amax(1).tolist() == [1] * 4
    names = {str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*.*")}
    assert {f"gradient/{name}" for name in ("maps.npy", "history.csv", "film_strip.png", "saliency/epoch_0002.png")} <= names
    assert {"film_strip.png", "bias_terms.png", "saliency/epoch_0002.png"} <= names
    assert history.about()["methods"] == ["gradient", "fullgrad"]


def test_without_fullgrad_its_pictures_are_not_shown_but_its_numbers_are(tmp_path):
    recorder = record(tmp_path / "run", "gradient")
    assert {"fullgrad/completeness_error", "gradient/drift"} <= set(recorder.numbers)
    assert (tmp_path / "run" / "gradient" / "saliency" / "epoch_0000.png").exists()
    assert not (tmp_path / "run" / "saliency").exists()
    assert (tmp_path / "run" / "maps.npy").exists()


def test_a_method_that_fails_says_so_once_and_the_others_go_on(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.Tanh(), nn.Linear(8, 3))
    recorder = FullGradRecorder(
        tmp_path / "run", (images(), LABELS), methods=["gradcam", "gradient", "guided_backprop"], task="classes"
    )
    with warnings.catch_warnings(record=True) as caught, recorder:
        warnings.simplefilter("always")
        for step in range(3):
            recorder.snapshot(model, step=step, epoch=step)
    words = [str(warning.message) for warning in caught]
    assert len(words) == 2
    assert "gradcam: ValueError: gradcam found no layer" in words[0]
    assert words[1].startswith("FullGradRecorder: guided_backprop found no ReLU")
    assert {"gradient/concentration", "fullgrad/concentration"} <= set(recorder.numbers)
    assert "gradcam/concentration" not in recorder.numbers
    history = History.read(tmp_path / "run")
    assert len(history.snapshots) == 3
    assert history.maps_of("gradcam", 2).isnan().all()
    assert not (tmp_path / "run" / "gradcam" / "film_strip.png").exists()
    with pytest.raises(ValueError, match="found no layer"):
        FullGradRecorder(None, (images(), LABELS), methods="gradcam", task="classes", strict=True).snapshot(model, step=0, epoch=0)


def test_a_method_whose_maps_are_mostly_zero_says_so_once_with_the_reason():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    for parameter in model[-1].parameters():
        nn.init.constant_(parameter, -1)  # every channel speaks against every class
    notes = []
    messages = Messages("FullGradRecorder", strict=True, inform=notes.append)
    recorder = FullGradRecorder(
        None, (images(), LABELS), methods=["fullgrad", "gradcam", "gradient"], task="classes", messages=messages
    )
    recorder.measure(model)
    for step in range(2):
        recorder.snapshot(model, step=10 * step, epoch=step + 1)
    (note,) = [note for note in notes if "zero everywhere" in note]
    assert "gradcam (epoch 1): 4 of 4 maps are zero everywhere: no channel" in note
    assert "gradcam/concentration" not in recorder.numbers
    assert "gradient/concentration" in recorder.numbers


def test_few_maps_that_are_zero_are_not_told():
    maps = torch.rand(5, 1, 4, 4)
    maps[:2] = 0
    assert describe_zero_maps("gradcam", "gradcam", maps, "untrained") == ""
    maps[:3] = 0
    told = describe_zero_maps("gradient", "gradient", maps, "untrained")
    assert told.startswith("gradient (untrained): 3 of 5 maps are zero everywhere: its")


def test_a_run_continues_the_maps_of_its_methods(tmp_path):
    first = record(tmp_path / "run", ["fullgrad", "gradient"])
    second = FullGradRecorder(tmp_path / "run", (images(), LABELS), methods=["fullgrad", "gradient"], task="classes")
    second.load_state_dict(first.state_dict())
    second.snapshot(network(), step=3, epoch=3)
    history = History.read(tmp_path / "run")
    assert len(history.snapshots) == 4
    assert torch.equal(history.maps_of("gradient", 0), History.read(tmp_path / "run").maps_of("gradient", 3))
    assert history.snapshots[3].numbers["gradient/drift_from_untrained"] == pytest.approx(0, abs=1e-5)  # float16 maps


def test_maps_of_a_method_that_are_lost_are_named_and_left_empty(tmp_path):
    first = record(tmp_path / "run", ["fullgrad", "gradient"])
    (tmp_path / "run" / "gradient" / "maps.npy").unlink()
    second = FullGradRecorder(tmp_path / "run", (images(), LABELS), methods=["fullgrad", "gradient"], task="classes")
    with pytest.warns(UserWarning, match="gradient/maps.npy lacks maps"):
        second.load_state_dict(first.state_dict())
    second.snapshot(network(), step=3, epoch=3)
    history = History.read(tmp_path / "run")
    assert [bool(history.maps_of("gradient", i).isnan().all()) for i in range(4)] == [True, True, True, False]
    assert "gradient/drift" not in history.snapshots[3].numbers
    assert history.snapshots[2].numbers["gradient/drift"] == first.history.snapshots[2].numbers["gradient/drift"]


@pytest.mark.parametrize("changed", [{"methods": "gradient"}, {"reading": "locally_affine"}, {"implicit": False}])
def test_other_methods_and_readings_begin_a_new_history(tmp_path, changed):
    first = record(tmp_path / "run", "fullgrad")
    second = FullGradRecorder(tmp_path / "run", (images(), LABELS), task="classes", **changed)
    (name,) = changed
    with pytest.warns(UserWarning, match=f"{name} was .* and is .*a new history begins"):
        second.load_state_dict(first.state_dict())


def test_a_checkpoint_of_an_earlier_version_continues(tmp_path):
    first = record(tmp_path / "run", "fullgrad")
    state = first.state_dict()
    for name in ("methods", "reading", "implicit"):
        del state["settings"][name]
    second = FullGradRecorder(tmp_path / "run", (images(), LABELS), task="classes")
    second.load_state_dict(state)
    assert len(second.history.snapshots) == 3


def test_a_network_of_implicit_biases_is_told_of_the_other_reading(caplog):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.norm, self.head = nn.LayerNorm(192), nn.Linear(192, 3, bias=False)

        def forward(self, x):
            return self.head(self.norm(x.flatten(1)))

    with caplog.at_level("INFO", logger="fg_lightning"):
        for reading in ("exact", "locally_affine"):
            recorder = FullGradRecorder(None, (images(), LABELS), task="classes", reading=reading)
            for step in range(2):
                recorder.snapshot(Attention(), step=step, epoch=step)
            share = recorder.numbers.get("fullgrad/implicit_share", 0)
            assert share > 0.9 if reading == "exact" else share == pytest.approx(0, abs=1e-5)  # float32
    notes = [record.message for record in caplog.records if "locally_affine" in record.message]
    assert len(notes) == 1
