"""The table of metrics at the end of a run's log."""

from resnet_backbones.evaluation.report import metrics_table


def test_metrics_table_accepts_any_class_name():
    metrics = {
        "bbox/AP": 37.5, "bbox/AP50": -1.0, "bbox/AP-bread/roll": 1.0, "bbox/AP-a/b-c": 2.0, "bbox/AP-AP50": 3.0,
        "bbox/AP-": 4.0, "voc/AP50_area": 5.0, "voc/AP50_area-x/voc/AP-y": 6.0,
        "second-set/segm/AP": 7.0, "second-set/segm/AP-../x": 8.0,
    }  # fmt: skip
    assert metrics_table(metrics).splitlines() == [
        "bbox",
        "  AP 37.50  AP50 -",
        "bbox AP by class",
        "  bread/roll 1.00  a/b-c 2.00       AP50 3.00         4.00",
        "voc",
        "  AP50_area 5.00",
        "voc AP50_area by class",
        "  x/voc/AP-y 6.00",
        "second-set/segm",
        "  AP 7.00",
        "second-set/segm AP by class",
        "  ../x 8.00",
    ]
    assert metrics_table({"top1": 76.1, "top5": 93.0}) == "  top1 76.10  top5 93.00"
