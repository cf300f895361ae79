"""The estimator: GluonTS's interface to train a forecaster with a neural memory."""

from collections.abc import Iterable
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import Any

from gluonts.core.component import validated
from gluonts.dataset.common import Dataset
from gluonts.torch.model.estimator import PyTorchLightningEstimator, TrainOutput
from gluonts.transform import InstanceSampler, Transformation

from titans_core import PRESETS, BackboneConfig
from titans_domains.config import from_dict, to_dict
from titans_domains.timeseries.checks import check_all
from titans_domains.timeseries.frames import as_dataset
from titans_domains.timeseries.frequency import old_names, period_alias
from titans_domains.timeseries.loaders import (
    Drawn,
    Sampled,
    Spread,
    sampled_places,
    stream_places,
    stream_steps,
    train_places,
    trained_ends,
    validation_places,
)
from titans_domains.timeseries.model import network_config
from titans_domains.timeseries.module import TitansModule
from titans_domains.timeseries.outputs import make_output
from titans_domains.timeseries.predictor import TitansPredictor
from titans_domains.timeseries.quiet import Start, quiet, seeded, trainer_settings
from titans_domains.timeseries.series import Arrays, SeriesSpec
from titans_domains.timeseries.transform import Prepare
from titans_domains.timeseries.windows import Windows, linear_map


class TitansEstimator(PyTorchLightningEstimator):
    """Trains a `ForecastNetwork` over many series, and gives a predictor.

    Arguments have the names that GluonTS's own estimators give them. Those that are ours:

    mixer: lmm, mac, mag, mal, mac+mal, attention, another of `titans_core.MIXERS`, or a `BackboneConfig`.
    distr_output: student_t, normal, laplace, quantiles (.1 to .9), the point losses mse, mae and huber,
        or one of GluonTS's outputs for the first four.
    channels, mixing: several channels per series, each on its own (`none`) or attending to each other
        at every patch (`channels`).
    carry: trains on streams `carry_length` steps longer than a context (4 contexts where not given), as
        a `CarryingPredictor` will read them: the scale is that of the first context, and the loss is
        taken after every patch.
    linear_start: whether the linear path starts at the ridge fitted on the training windows.
    num_validation_windows: windows of `validation_data` that are looked at after each epoch, spread
        over what it has beyond the training data (all of it, where it has nothing more). A series is
        known again by its item_id and its stamps; without an item_id, by its place in the data.
    seed: of weights and the order of windows. Global random states stay as they were.

    Without `freq` there are no time features unless `time_features` asks for them. Windows are cut
    from tables in memory and are drawn at random, so `cache_data` and `shuffle_buffer_length` change
    nothing. With validation data, a network that is no better than the linear path it started from is
    not kept.
    """

    trainer_kwargs: dict[str, Any]

    @validated()
    def __init__(
        self,
        prediction_length: int,
        context_length: int | None = None,
        freq: str | None = None,
        mixer: Any = "lmm",
        patch_len: int | None = None,
        distr_output: Any = "student_t",
        channels: int = 1,
        mixing: str = "none",
        num_feat_dynamic_real: int = 0,
        num_past_feat_dynamic_real: int = 0,
        num_feat_static_real: int = 0,
        num_feat_static_cat: int = 0,
        cardinality: list[int] | None = None,
        embedding_dimension: list[int] | None = None,
        lags_seq: list[int] | None = None,
        time_features: list[Any] | None = None,
        scaling: str | None = "std",
        dropout: float = 0.0,
        linear_start: bool = True,
        carry: bool = False,
        carry_length: int | None = None,
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        batch_size: int = 32,
        num_batches_per_epoch: int = 50,
        num_validation_windows: int = 512,
        trainer_kwargs: dict[str, Any] | None = None,
        train_sampler: InstanceSampler | None = None,
        validation_sampler: InstanceSampler | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            trainer_kwargs={"max_epochs": 100, "gradient_clip_val": 10.0, **(trainer_kwargs or {})}
        )
        backbone = backbone_config(mixer)
        # GluonTS writes the arguments down, and knows no dataclass of ours.
        self.__init_args__["mixer"] = mixer if isinstance(mixer, str) else to_dict(backbone)
        self.distr_output = make_output(distr_output)
        self.spec = SeriesSpec(
            prediction_length=prediction_length,
            context_length=4 * prediction_length if context_length is None else context_length,
            channels=channels,
            freq=freq,
            lags_seq=tuple(lags_seq or ()),
            time_features=feature_names(freq, time_features),
            num_feat_dynamic_real=num_feat_dynamic_real,
            num_past_feat_dynamic_real=num_past_feat_dynamic_real,
            num_feat_static_real=num_feat_static_real,
            cardinality=categories(num_feat_static_cat, cardinality),
        )
        self.network = network_config(
            self.spec,
            self.distr_output,
            patch_len=min(16, self.spec.context_length) if patch_len is None else patch_len,
            mixing=mixing,
            scaling=scaling or "none",
            dropout=dropout,
            embedding_dimension=None if embedding_dimension is None else tuple(embedding_dimension),
            model=backbone,
        )
        self.prediction_length = prediction_length
        self.linear_start, self.carry = linear_start, carry
        self.carry_length = (
            None if carry_length is None else at_least("carry_length", carry_length, 0)
        )
        self.lr, self.weight_decay = lr, at_least("weight_decay", weight_decay, 0)
        if not lr > 0:
            raise ValueError(f"lr must be positive: got {lr}.")
        self.batch_size = at_least("batch_size", batch_size, 1)
        self.num_batches_per_epoch = at_least("num_batches_per_epoch", num_batches_per_epoch, 1)
        self.num_validation_windows = at_least("num_validation_windows", num_validation_windows, 1)
        self.seed = at_least("seed", seed, 0)
        self.train_sampler, self.validation_sampler = train_sampler, validation_sampler
        self.trained_to: dict[Any, Any] = {}

    def create_transformation(self) -> Transformation:
        return Prepare(to_dict(self.spec))

    def create_lightning_module(self) -> TitansModule:
        return TitansModule(
            spec=to_dict(self.spec),
            network=to_dict(self.network),
            distr_output=self.distr_output,
            lr=self.lr,
            weight_decay=self.weight_decay,
            carry=self.carry,
        )

    def create_training_data_loader(
        self, data: Dataset, module: TitansModule, **kwargs: Any
    ) -> Iterable[Any]:
        """Also starts the module's linear path, which needs the windows."""
        # GluonTS counts a data set by transforming all of it, and a list would ask for its length.
        entries = list(iter(data))
        series = [entry["arrays"] for entry in entries]
        self.trained_to = trained_ends(entries)
        length, horizon = self.spec.context_length, self.prediction_length
        if self.linear_start:
            plain = train_places(Windows(series, length, horizon), horizon, least=length)
            ridge = linear_map(plain, self.network.scaling, length)
            if ridge is not None:
                module.model.network.start_at(ridge.weight.float())
        windows = self._windows(series)
        if self.train_sampler is not None:
            return Sampled(
                windows, entries, self.train_sampler, self.batch_size, self.num_batches_per_epoch
            )
        if self.carry:
            places = stream_places(windows, horizon, length)
        else:
            places = train_places(windows, horizon, least=1)
        return Drawn(places, self.batch_size, self.num_batches_per_epoch, self.seed)

    def create_validation_data_loader(
        self, data: Dataset, module: TitansModule, **kwargs: Any
    ) -> Iterable[Any]:
        entries = list(iter(data))
        windows = self._windows([entry["arrays"] for entry in entries])
        if self.validation_sampler is not None:
            places = sampled_places(windows, entries, self.validation_sampler)
        else:
            places = validation_places(
                windows,
                entries,
                self.prediction_length,
                self.trained_to,
                context=self.spec.context_length if self.carry else None,
            )
        return Spread(places, self.num_validation_windows, self.batch_size)

    def _windows(self, series: list[Arrays]) -> Windows:
        past, horizon = self.spec.context_length, self.prediction_length
        if self.carry:
            past = stream_steps(series, self.carry_length, past, self.network.patch_len, horizon)
        return Windows(series, past, horizon)

    def train(
        self, training_data: Any, validation_data: Any = None, **options: Any
    ) -> TitansPredictor:
        """The predictor that `train_model` makes, whose `options` GluonTS would drop."""
        return self.train_model(training_data, validation_data, **options).predictor

    def train_model(
        self,
        training_data: Any,
        validation_data: Any = None,
        from_predictor: Any = None,
        shuffle_buffer_length: int | None = None,
        cache_data: bool = False,
        ckpt_path: str | None = None,
        **options: Any,
    ) -> TrainOutput:
        """Trains on series, or on a table or CSV file, which `options` say how to read (`from_table`)."""
        training_data = list(as_dataset(training_data, **options))
        check_all(training_data, self.spec, train=True)
        if validation_data is not None:
            validation_data = list(as_dataset(validation_data, **options))
            check_all(validation_data, self.spec, train=True)
        asked, start = self.trainer_kwargs, Start()
        with TemporaryDirectory() as folder, quiet(), seeded(self.seed):
            self.trainer_kwargs = trainer_settings(asked, folder, start)
            try:
                trained = super().train_model(
                    training_data, validation_data, from_predictor, ckpt_path=ckpt_path
                )
            except SystemExit as end:
                if not isinstance(end.__context__, KeyboardInterrupt):
                    raise
                # Lightning makes an exit of it.
                raise KeyboardInterrupt from None
            finally:
                self.trainer_kwargs = asked
            start.keep_if_better(trained)
        return trained

    def create_predictor(
        self, transformation: Transformation, module: TitansModule
    ) -> TitansPredictor:
        return TitansPredictor.of(module, batch_size=self.batch_size)


def backbone_config(mixer: Any) -> BackboneConfig:
    """A mixer by its name, at laptop size, or a whole configuration."""
    if isinstance(mixer, BackboneConfig):
        return mixer
    if isinstance(mixer, dict):
        return from_dict(BackboneConfig, mixer, "mixer")
    if not isinstance(mixer, str):
        raise ValueError(
            f"mixer must be a mixer's name or a BackboneConfig: got {type(mixer).__name__}."
        )
    return replace(PRESETS["tiny"], mixer=mixer)


def feature_names(freq: str | None, given: list[Any] | None) -> tuple[str, ...]:
    """Time features by name; those that GluonTS has for `freq` where none are given."""
    if given is not None:
        return tuple(getattr(feature, "__name__", feature) for feature in given)
    if freq is None:
        return ()
    from gluonts.time_feature import time_features_from_frequency_str

    with old_names():
        found = time_features_from_frequency_str(period_alias(freq))
    return tuple(feature.__name__ for feature in found)


def categories(count: int, cardinality: list[int] | None) -> tuple[int, ...]:
    if count != len(cardinality or ()):
        raise ValueError(
            f"cardinality must have one number for each of num_feat_static_cat = {count} "
            f"categories: got {cardinality}."
        )
    return tuple(cardinality or ())


def at_least(name: str, value: Any, least: int) -> Any:
    if not least <= value < 2**63:
        raise ValueError(f"{name} must be at least {least}: got {value}.")
    return value
