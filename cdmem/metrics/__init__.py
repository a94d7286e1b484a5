"""Every number: neighbours, memorisation, quality, white-box measures, and teacher against student."""

import lazy_loader

# Class paths of configs and command lines; the files behind them may move.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "base": ["SampleMetric"],
        "comparison.paired": ["PairedWithTeacher"],
        "memorization.authenticity": ["Authenticity"],
        "memorization.copy_detection": ["CopyDetection"],
        "memorization.coverage": ["HitCoverage"],
        "memorization.data_copying": ["CopyTest", "TrainPreference", "TwoSampleAccuracy"],
        "memorization.extraction": ["AbsoluteExtraction", "AdaptiveExtraction"],
        "memorization.feature_likelihood": ["FeatureLikelihood"],
        "memorization.fraction": ["MemorizedFraction"],
        "memorization.tolerant": ["TolerantCopies"],
        "neighbors.index": ["NearDuplicates", "NeighborMetric"],
        "quality.efficientnet": ["EfficientNetLite0Features"],
        "quality.feature_space": ["FeatureMetric"],
        "quality.features": ["PixelFeatures"],
        "quality.fidelity": ["Fidelity"],
        "quality.inception": ["InceptionFeatures"],
        "quality.prdc": ["ManifoldQuality"],
    },
)
