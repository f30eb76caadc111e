"""Published tables of label encodings: IDD's and Mapillary's ids, and CamVid's colours."""

from __future__ import annotations

IDD_LEVEL3 = (
    "road",
    "drivable fallback",
    "sidewalk",
    "non-drivable fallback",
    "person",
    "rider",
    "motorcycle",
    "bicycle",
    "autorickshaw",
    "car",
    "truck",
    "bus",
    "vehicle fallback",
    "curb",
    "wall",
    "fence",
    "guard rail",
    "billboard",
    "traffic sign",
    "traffic light",
    "pole",
    "obs-str-bar-fallback",
    "building",
    "bridge",
    "vegetation",
    "sky",
)
"""The 26 classes of IDD's segmentation benchmark by level3Id (AutoNUE/public-code, evaluate_mIoU.py)."""
IDD_IDS = (
    "road",
    "parking",
    "drivable fallback",
    "sidewalk",
    "rail track",
    "non-drivable fallback",
    "person",
    "animal",
    "rider",
    "motorcycle",
    "bicycle",
    "autorickshaw",
    "car",
    "truck",
    "bus",
    "caravan",
    "trailer",
    "train",
    "vehicle fallback",
    "curb",
    "wall",
    "fence",
    "guard rail",
    "billboard",
    "traffic sign",
    "traffic light",
    "pole",
    "polegroup",
    "obs-str-bar-fallback",
    "building",
    "bridge",
    "tunnel",
    "vegetation",
    "sky",
    "fallback background",
)
"""IDD's classes by id (AutoNUE/public-code, anue_labels.py); its ids 35 to 39 are void."""
MAPILLARY_65 = (
    "Bird",
    "Ground Animal",
    "Curb",
    "Fence",
    "Guard Rail",
    "Barrier",
    "Wall",
    "Bike Lane",
    "Crosswalk - Plain",
    "Curb Cut",
    "Parking",
    "Pedestrian Area",
    "Rail Track",
    "Road",
    "Service Lane",
    "Sidewalk",
    "Bridge",
    "Building",
    "Tunnel",
    "Person",
    "Bicyclist",
    "Motorcyclist",
    "Other Rider",
    "Lane Marking - Crosswalk",
    "Lane Marking - General",
    "Mountain",
    "Sand",
    "Sky",
    "Snow",
    "Terrain",
    "Vegetation",
    "Water",
    "Banner",
    "Bench",
    "Bike Rack",
    "Billboard",
    "Catch Basin",
    "CCTV Camera",
    "Fire Hydrant",
    "Junction Box",
    "Mailbox",
    "Manhole",
    "Phone Booth",
    "Pothole",
    "Street Light",
    "Pole",
    "Traffic Sign Frame",
    "Utility Pole",
    "Traffic Light",
    "Traffic Sign (Back)",
    "Traffic Sign (Front)",
    "Trash Can",
    "Bicycle",
    "Boat",
    "Bus",
    "Car",
    "Caravan",
    "Motorcycle",
    "On Rails",
    "Other Vehicle",
    "Trailer",
    "Truck",
    "Wheeled Slow",
    "Car Mount",
    "Ego Vehicle",
)
"""Mapillary Vistas 1.2's classes by id (config.json of the data set); its id 65 is unlabeled."""
CAMVID_COLOURS: tuple[tuple[tuple[int, int, int], str | None], ...] = (
    ((64, 128, 64), "pedestrian"),  # Animal
    ((192, 0, 128), "building"),  # Archway
    ((0, 128, 192), "bicyclist"),  # Bicyclist
    ((0, 128, 64), "building"),  # Bridge
    ((128, 0, 0), "building"),  # Building
    ((64, 0, 128), "car"),  # Car
    ((64, 0, 192), "pedestrian"),  # CartLuggagePram
    ((192, 128, 64), "pedestrian"),  # Child
    ((192, 192, 128), "pole"),  # Column_Pole
    ((64, 64, 128), "fence"),  # Fence
    ((128, 0, 192), "road"),  # LaneMkgsDriv
    ((192, 0, 64), "road"),  # LaneMkgsNonDriv
    ((128, 128, 64), "sign"),  # Misc_Text
    ((192, 0, 192), "bicyclist"),  # MotorcycleScooter
    ((128, 64, 64), "car"),  # OtherMoving
    ((64, 192, 128), "pavement"),  # ParkingBlock
    ((64, 64, 0), "pedestrian"),  # Pedestrian
    ((128, 64, 128), "road"),  # Road
    ((128, 128, 192), "pavement"),  # RoadShoulder
    ((0, 0, 192), "pavement"),  # Sidewalk
    ((192, 128, 128), "sign"),  # SignSymbol
    ((128, 128, 128), "sky"),  # Sky
    ((64, 128, 192), "car"),  # SUVPickupTruck
    ((0, 0, 64), "pole"),  # TrafficCone
    ((0, 64, 64), "sign"),  # TrafficLight
    ((192, 64, 128), "car"),  # Train
    ((128, 128, 0), "tree"),  # Tree
    ((192, 128, 192), "car"),  # Truck_Bus
    ((64, 0, 64), "building"),  # Tunnel
    ((192, 192, 0), "tree"),  # VegetationMisc
    ((0, 0, 0), None),  # Void
    ((64, 192, 0), "building"),  # Wall
)
"""CamVid's 32 colours in the order of its label_colors.txt, with the usual 11-class grouping.

The groups are those of MathWorks' CamVid example. None is ignored.
"""
