"""The words of the bundled model ``cxr-pneumonia``: what it reads, for whom, and its limits.

Owns everything of its manifest that is not measured. Imports nothing heavy, so that tests and
tools can read it.
"""

from __future__ import annotations

NAME = "cxr-pneumonia"
VERSION = "1.0.0"
TITLE = "Paediatric chest X-ray pneumonia"
WEIGHTS_NAME = "weights.keras"
CLASSES = ("NORMAL", "PNEUMONIA")
INPUT_ROWS = 160
INPUT_COLUMNS = 160
INPUT = {
    "kind": "image",
    "rows": INPUT_ROWS,
    "columns": INPUT_COLUMNS,
    "channels": 1,
    "fit": "stretch",
    "intensity": {"kind": "percentile", "low": 0.5, "high": 99.5},
}
SELECTION: dict[str, object] = {
    "where": {
        "all": [
            {"attribute": "Modality", "in": ["CR", "DX"]},
            {
                "any": [
                    {"attribute": "BodyPartExamined", "in": ["CHEST", "THORAX"]},
                    {
                        "reason": "many devices leave the body part empty",
                        "all": [
                            {"attribute": "BodyPartExamined", "empty": True},
                            {
                                "any": [
                                    {"attribute": keyword, "regex": ".*(?:chest|thorax).*"}
                                    for keyword in ("StudyDescription", "SeriesDescription")
                                ]
                            },
                        ],
                    },
                ]
            },
        ]
    },
    "rank": [
        {"prefer": {"attribute": "ViewPosition", "in": ["PA", "AP"]}},
        {"attribute": "InstanceNumber", "order": "ascending"},
    ],
}

CONTRACT: list[dict[str, object]] = [
    {
        "text": "The model was trained on frontal views only.",
        "require": {
            "any": [
                {"attribute": "ViewPosition", "in": ["PA", "AP"]},
                {
                    "reason": "many devices leave the view empty; then no other field may name it",
                    "all": [
                        {"attribute": "ViewPosition", "empty": True},
                        *(
                            {"not": {"attribute": keyword, "regex": r".*\blat(?:eral)?\b.*"}}
                            for keyword in ("ViewCodeSequence", "SeriesDescription")
                        ),
                    ],
                },
            ]
        },
    },
    {
        "text": "Raw detector data look unlike the processed films the model was trained on.",
        "require": {"attribute": "PresentationIntentType", "not_in": ["FOR PROCESSING"]},
    },
    {
        "text": "The model was trained on children of one to five years; the age must be known, "
        "because an adult's film must not get a score by accident.",
        "require": {"attribute": "age_years", "range": {"min": 1, "max": 5.999}},
    },
    {
        "text": "The film is too small to show what the model looks for.",
        "reason": "insufficient quality",
        "require": {
            "all": [
                {"attribute": "Rows", "range": {"min": 150}},
                {"attribute": "Columns", "range": {"min": 150}},
            ]
        },
    },
    {
        "text": "A projection image has one frame.",
        "require": {
            "any": [
                {"attribute": "NumberOfFrames", "empty": True},
                {"attribute": "NumberOfFrames", "equals": 1},
            ]
        },
    },
]

INTENDED_USE = (
    "Flags frontal chest X-rays of children aged one to five for signs of pneumonia, to support "
    "reading order and attention. Not a diagnosis; every result needs a physician's reading."
)
LIMITS = [
    "Trained and validated on films of children aged one to five; says nothing about adults.",
    "All films come from one hospital (Guangzhou Women and Children's Medical Center).",
    "Frontal views only. Lateral views are refused as far as the header names them.",
    "Films of other hospitals and devices were not available; expect other scores there.",
    "Validation films come from other patients of the same hospital; figures elsewhere differ.",
    "Does not tell bacterial from viral pneumonia and does not say where in the lung.",
    "Absent means below the threshold, not that pneumonia is ruled out.",
]
SOURCE = (
    "Kermany, Zhang, Goldbaum: Labeled Optical Coherence Tomography (OCT) and Chest X-Ray Images "
    "for Classification, Mendeley Data V2, doi 10.17632/rscbjbr9sj.2"
)
README = """# cxr-pneumonia {version}

Flags frontal chest X-rays of children aged one to five for signs of pneumonia.
`manifest.toml` states intended use, limits, input contract and the figures on validation.

## Where the weights come from

Trained by `python -m model.training.cxr_pneumonia` on the public films of

> Kermany, Zhang, Goldbaum, "Labeled Optical Coherence Tomography (OCT) and Chest X-Ray Images for
> Classification", Mendeley Data V2, doi 10.17632/rscbjbr9sj.2, licence CC BY 4.0

in the resized copy (224x224 JPEG) of `waliatushar/ai-pneumonia-detection`, its train folder only.
Changes made to the data: resized by that repository, exact duplicates dropped, and split again by
patient. The weights are derived from these films; attribution as above is owed wherever they go.
No film is contained in this package.
"""


def label_table(threshold: float, low: float) -> dict[str, object]:
    """Return the only label with its threshold and the low end of its undetermined band."""
    return {
        "name": "Pneumonia",
        "code": ["233604007", "SCT", "Pneumonia"],
        "site": ["39607008", "SCT", "Lung"],
        "threshold": threshold,
        "undetermined": [min(low, threshold), threshold],
    }
